"""A text model without weights, as every task on texts takes it."""

from __future__ import annotations

from typing import Any

from torch import nn

from daskinfer.models.architecture import build_model, stored_prefix
from daskinfer.models.tasks.fields import text_fields
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.spec.outline import InputArray

Prefixes = tuple[tuple[str, str], ...]


def build_text_model(request: TaskRequest, class_name: str, dtype: str) -> tuple[nn.Module, Prefixes]:
    """Return a model of an Auto class and what its tensors' names begin with; refuse what the checkpoint cannot do."""
    text_fields(request, request.options.max_length)
    model = build_model(request.config, class_name, dtype, request.files)
    prefix = stored_prefix(model)
    return model, ((prefix, ""),) if prefix else ()


def text_inputs(model: nn.Module) -> tuple[InputArray, InputArray]:
    """Return `input_ids` and `attention_mask` of a row."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return (
        InputArray(name="input_ids", dtype="int64", shape=(None,), bound=embeddings.num_embeddings),
        InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2),
    )
