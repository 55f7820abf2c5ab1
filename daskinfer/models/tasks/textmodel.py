"""A text model without weights, as every task on texts takes it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.models.architecture import build_model, stored_prefix
from daskinfer.models.tasks.fields import text_fields
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.tokenizer import read_settings
from daskinfer.spec.outline import InputArray

Prefixes = tuple[tuple[str, str], ...]


def build_text_model(request: TaskRequest, class_name: str, dtype: str) -> tuple[nn.Module, Prefixes]:
    """Return a model of an Auto class and what its tensors' names begin with; refuse what the checkpoint cannot do."""
    text_fields(request, request.options.max_length)
    model = build_model(request.config, class_name, dtype, request.files)
    prefix = stored_prefix(model)
    return model, ((prefix, ""),) if prefix else ()


@dataclass(frozen=True, slots=True)
class TextInputs:
    """What a model is given of a text."""

    arrays: tuple[InputArray, ...]
    """What every row brings: token ids first, and the mask."""
    zeros: tuple[str, ...]
    """What is 0 for every token of every row, so that no row brings it."""

    def run(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Return the model's output."""
        ids = inputs["input_ids"]
        given = {array.name: inputs[array.name] for array in self.arrays}
        return model(**given, **{name: torch.zeros_like(ids) for name in self.zeros})


def text_inputs(model: nn.Module, request: TaskRequest) -> TextInputs:
    """Return what the tokenizer returns of a text and the model's forward takes."""
    settings = read_settings(request.files)
    ids = InputArray(name="input_ids", dtype="int64", shape=(None,), bound=count_ids(model))
    # Padded rows need it, even of a tokenizer that returns none: a row alone is what the model then takes it for.
    mask = InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2)
    name = "token_type_ids"
    if name not in settings.model_input_names or name not in inspect.signature(model.forward).parameters:
        return TextInputs((ids, mask), ())
    if settings.token_types == 1:
        return TextInputs((ids, mask), (name,))
    types = InputArray(name=name, dtype="int64", shape=(None,), bound=settings.token_types)
    return TextInputs((ids, mask, types), ())


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
