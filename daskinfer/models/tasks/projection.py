"""One vector for every text, by a model that makes it itself: a tower with a projection, an encoder with a pooled output."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import transformers
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import build_model, stored_prefix
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.sentence import Sentence
from daskinfer.models.tasks.textmodel import Prefixes, TextInputs, refuse_sound_model, text_inputs

_HIDDEN = "last_hidden_state"
_POOLED = "pooler_output"


class TextProjection(TaskModule):
    """`embedding` (rows, width) float32: the model's own vector of every text.

    Parameters
    ----------
    model, prefixes
        See `TaskModule`.
    inputs
        What the model is given of a text.
    normalize
        Whether vectors are scaled to length 1.

    Examples
    --------
    >>> from daskinfer.spec.outline import InputArray
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(None,))
    >>> module = TextProjection(nn.Identity(), (), TextInputs((ids,), ("input_ids",)), normalize=True)
    >>> module.training, [array.name for array in module.inputs]
    (False, ['input_ids'])
    """

    def __init__(self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs, normalize: bool) -> None:
        super().__init__(model, prefixes, inputs.arrays)
        self._text = inputs
        self._normalize = normalize
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the embeddings."""
        output: Any = self._text.run(self.model, inputs)
        vectors = output if isinstance(output, Tensor) else getattr(output, "text_embeds", None)
        vectors = getattr(output, _POOLED, None) if vectors is None else vectors
        if vectors is None or vectors.ndim != 2:
            raise _has_no_vector(type(self.model).__name__, "has no vector of a text among its outputs")
        vectors = vectors.float()
        return {"embedding": nn.functional.normalize(vectors, p=2, dim=1) if self._normalize else vectors}


def find_projection(request: TaskRequest, sentence: Sentence, dtype: str) -> TextProjection | None:
    """Return the module that embeds with a checkpoint's own projection; None where its class has none.

    Raises
    ------
    CheckpointError
        Where the class makes vectors that `embed` does not write: one for every token.

    Examples
    --------
    >>> from daskinfer.models.tasks.sentence import read_sentence
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("embed")
    >>> find_projection(request, read_sentence(request), "float32") is None
    True
    """
    names = [request.architecture, *map(str, request.config.get("architectures") or ())]
    model_class: Any = getattr(transformers, request.architecture, None)
    refuse_sound_model(model_class, request.architecture)
    if any("colbert" in name.lower() for name in names) or "embeddings" in _output_fields(model_class):
        raise _has_no_vector(names[-1], "makes a vector for every token, and none for a text")
    if model_class is None or not hasattr(model_class, "forward"):
        return None
    features = getattr(model_class, "get_text_features", None)
    told = _output_fields(model_class)
    is_pooled = bool(told) and _HIDDEN not in told and _POOLED in told
    if features is None and "text_embeds" not in told and not is_pooled:
        return None
    if request.options.pooling != "auto" or any(step is not None for step in sentence.steps):
        raise _has_no_vector(request.architecture, "has a projection of its own, which follows no other pooling")
    model = build_model(request.config, request.architecture, dtype, request.files)
    if features is not None:
        model.forward = model.get_text_features  # type: ignore[assignment]
    prefix = stored_prefix(model)
    return TextProjection(
        model, ((prefix, ""),) if prefix else (), text_inputs(model, request), normalize=bool(sentence.steps)
    )


def take_hidden(output: Any, mask: Tensor, model: nn.Module) -> Tensor:
    """Return the last hidden state of every token.

    Raises
    ------
    CheckpointError
        Where the model returns none, or one that is not of the tokens.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> output = SimpleNamespace(last_hidden_state=torch.zeros(2, 3, 4))
    >>> take_hidden(output, torch.ones(2, 3), nn.Identity()).shape
    torch.Size([2, 3, 4])
    >>> take_hidden(SimpleNamespace(), torch.ones(2, 3), nn.Identity())
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: Identity cannot embed texts: it returns no last hidden state
    Use the task forward with arrays, or leave model.options.pooling on auto.
    """
    hidden = getattr(output, _HIDDEN, None)
    name = type(model).__name__
    if not isinstance(hidden, Tensor):
        raise _has_no_vector(name, "returns no last hidden state")
    if hidden.ndim != 3 or hidden.shape[:2] != mask.shape:
        raise _has_no_vector(name, "has a last hidden state that is not of the tokens")
    return hidden


def _has_no_vector(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot embed texts: it {reason}",
        hint="Use the task forward with arrays, or leave model.options.pooling on auto.",
    )


def _output_fields(model_class: Any) -> set[str]:
    """Return the names of what a class says that its forward returns; empty where it does not say."""
    try:
        told = get_type_hints(model_class.forward).get("return")
    except (AttributeError, NameError, TypeError):
        return set()
    kinds = [kind for kind in (told, *get_args(told)) if isinstance(kind, type) and is_dataclass(kind)]
    return {field.name for kind in kinds for field in fields(kind)}
