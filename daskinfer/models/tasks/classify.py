"""Class scores for every text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.preprocessing.textconfig import pad_id
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.fields import find_activation, label_names
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.textmodel import (
    Prefixes,
    TextInputs,
    build_text_model,
    refuse_sound_model,
    text_inputs,
)


class TextClassification(TaskModule):
    """`scores` (rows, classes) float32 from what a tokenizer returns, (rows, tokens) each.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("classify", "BertForSequenceClassification")
    >>> model, prefixes = build_text_model(request, "AutoModelForSequenceClassification", "float32")
    >>> module = TextClassification(model, prefixes, text_inputs(model, request), request.config)
    >>> module.stored_name("model.bert.pooler.dense.weight")
    'pooler.dense.weight'
    """

    def __init__(self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs, config: Mapping[str, Any]) -> None:
        super().__init__(model, prefixes, inputs.arrays)
        self._text = inputs
        self._config = config
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the score of every class."""
        return {"scores": score_classes(self._text.run(self.model, inputs), self._config)}


def score_classes(output: Any, config: Mapping[str, Any]) -> Tensor:
    """Return the score of every class, (rows, classes) float32, from a classifier's output: a probability, or a
    regression's value.

    Raises
    ------
    CheckpointError
        Where there is not one value for each class that config.json names.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> logits = SimpleNamespace(logits=torch.tensor([[0.0, 0.0], [0.0, 100.0]]))
    >>> score_classes(logits, {"num_labels": 2})
    tensor([[5.0000e-01, 5.0000e-01],
            [3.7835e-44, 1.0000e+00]])
    """
    logits = getattr(output, "logits", None)
    names = label_names(config)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != len(names):
        shape = list(logits.shape[1:]) if isinstance(logits, Tensor) else "nothing"
        raise CheckpointError(
            f"config.json: id2label names {len(names)} classes, but the classifier returns {shape} for a row",
            hint="Take config.json and weights from the same checkpoint.",
        )
    values = logits.float()
    match find_activation(config):
        case "softmax":
            return torch.softmax(values, dim=-1)
        case "sigmoid":
            return torch.sigmoid(values)
        case "identity":
            return values


def make_classify(request: TaskRequest, dtype: str) -> TextClassification:
    """Return a sequence classifier.

    Raises
    ------
    CheckpointError
        If the checkpoint has none, or the classifier finds a row's end by a padding id that config.json lacks.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> make_classify(ask_tiny("classify", "BertForSequenceClassification"), "float32").training
    False
    """
    model, prefixes = build_text_model(request, "AutoModelForSequenceClassification", dtype)
    refuse_sound_model(model, request.architecture)
    settings = model.config.get_text_config()  # type: ignore[operator, union-attr]
    told = getattr(settings, "pad_token_id", None)
    if told != pad_id(request.config) and (told is not None or _looks_for_padding(model)):
        raise CheckpointError(
            f"config.json: {request.architecture} needs a pad_token_id, to tell where a padded row ends",
            hint="Set it to the tokenizer's padding id and publish again.",
        )
    return TextClassification(model, prefixes, text_inputs(model, request), request.config)


def _looks_for_padding(model: nn.Module) -> bool:
    """Whether a classifier's own forward asks for the padding id; Perceiver, for one, has none and needs none."""
    try:
        return "pad_token_id" in inspect.getsource(type(model).forward)
    except (OSError, TypeError):
        return True
