"""Class scores for every text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.tasks.fields import use_sigmoid
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.tasks.textmodel import Prefixes, TextInputs, build_text_model, text_inputs
from daskinfer.models.textconfig import pad_id


class TextClassification(TaskModule):
    """`scores` (rows, classes) float32 from what a tokenizer returns, (rows, tokens) each."""

    def __init__(self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs, sigmoid: bool) -> None:
        super().__init__(model, prefixes, inputs.arrays)
        self._text = inputs
        self._sigmoid = sigmoid
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the probability of every class."""
        logits = self._text.run(self.model, inputs).logits.float()
        return {"scores": torch.sigmoid(logits) if self._sigmoid else torch.softmax(logits, dim=-1)}


def make_classify(request: TaskRequest, dtype: str) -> TextClassification:
    """Return a sequence classifier.

    Raises
    ------
    CheckpointError
        If the checkpoint has none, or the classifier finds a row's end by a padding id that config.json lacks.
    """
    model, prefixes = build_text_model(request, "AutoModelForSequenceClassification", dtype)
    settings = model.config.get_text_config()  # type: ignore[operator, union-attr]
    if getattr(settings, "pad_token_id", None) != pad_id(request.config):
        raise CheckpointError(
            f"config.json: {request.architecture} needs a pad_token_id, to tell where a padded row ends",
            hint="Set it to the tokenizer's padding id and publish again.",
        )
    return TextClassification(model, prefixes, text_inputs(model, request), use_sigmoid(request.config))
