"""A text model without weights, as every task on texts takes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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
    return (
        InputArray(name="input_ids", dtype="int64", shape=(None,), bound=count_ids(model)),
        InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2),
    )


def count_ids(model: nn.Module) -> int | None:
    """Return how many token ids a model knows: rows of its input embeddings, else its vocabulary; None if unknown."""
    try:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return int(weight.shape[0])
    settings: Any = getattr(model, "config", None)
    size = getattr(settings and settings.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None
