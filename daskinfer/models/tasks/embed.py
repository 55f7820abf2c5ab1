"""One vector for every text."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import without_weights
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import count_prompt
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.pooling import pool
from daskinfer.models.tasks.projection import find_projection, take_hidden
from daskinfer.models.tasks.sentence import Dense, Sentence, read_sentence
from daskinfer.models.tasks.textmodel import (
    Prefixes,
    TextInputs,
    build_text_model,
    refuse_sound_model,
    text_inputs,
)


class DenseLayer(nn.Module):
    """A linear layer with an activation, as sentence-transformers puts them after the pooling.

    Examples
    --------
    >>> layer = DenseLayer(Dense("2_Dense", 4, 2, bias=True, activation="Tanh"), torch.float32)
    >>> layer.linear.weight.shape, layer.linear.weight.is_meta
    (torch.Size([2, 4]), True)
    """

    def __init__(self, dense: Dense, dtype: torch.dtype) -> None:
        super().__init__()
        with without_weights():
            self.linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias, dtype=dtype)
        self.activation: nn.Module = getattr(nn, dense.activation)()

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (rows, out_features) float32."""
        result: Tensor = self.activation(self.linear(vectors.to(self.linear.weight.dtype)))
        return result.float()


class Unpooled(nn.Module):
    """In the place of a model's own pooler, which takes no part: some models call theirs without asking for it."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return what it is given."""
        return hidden


class TextEmbedding(TaskModule):
    """`embedding` (rows, width) float32 from what a tokenizer returns, (rows, tokens) each.

    Parameters
    ----------
    model, prefixes
        See `TaskModule`.
    inputs
        What the model is given of a text.
    sentence
        Pooling, and what follows it.
    skip
        Tokens at the beginning of every row that are not pooled.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("embed")
    >>> model, prefixes = build_text_model(request, "AutoModel", "float32")
    >>> module = TextEmbedding(model, prefixes, text_inputs(model, request), read_sentence(request), 0, "float32")
    >>> [array.name for array in module.inputs]
    ['input_ids', 'attention_mask']
    """

    def __init__(
        self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs, sentence: Sentence, skip: int, dtype: str
    ) -> None:
        dense = [step for step in sentence.steps if step is not None]
        super().__init__(model, (*((f"{each.path}.", f"{each.path}.") for each in dense), *prefixes), inputs.arrays)
        self._text = inputs
        for each in dense:
            self.add_module(each.path, DenseLayer(each, getattr(torch, dtype)))
        self._sentence = sentence
        self._skip = skip
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the embeddings."""
        mask = inputs["attention_mask"]
        hidden = take_hidden(self._text.run(self.model, inputs), mask, self.model)
        if self._skip:
            mask = mask * (torch.arange(mask.shape[1], device=mask.device) >= self._skip)
        vectors = pool(hidden.float(), mask, self._sentence.pooling)
        for step in self._sentence.steps:
            if step is None:
                vectors = nn.functional.normalize(vectors, p=2, dim=1)
            else:
                vectors = self.get_submodule(step.path)(vectors)
        return {"embedding": vectors}


def make_embed(request: TaskRequest, dtype: str) -> TaskModule:
    """Return a text model with its pooling; of an encoder-decoder, the encoder alone.

    A model with a projection, or without hidden states, gives the vector that it makes itself.

    Raises
    ------
    CheckpointError
        If the model does not take texts, or makes no vector of one.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> type(make_embed(ask_tiny("embed", "T5EncoderModel"), "float32").model).__name__
    'T5Stack'
    """
    sentence = read_sentence(request)
    projected = find_projection(request, sentence, dtype)
    if projected is not None:
        return projected
    model, prefixes = build_text_model(request, "AutoModel", dtype)
    # By what is there: the configuration of a lone T5 encoder denies it, and its Auto class is still the whole model.
    if hasattr(model, "encoder") and _takes_hidden(getattr(model, "decoder", None)):
        whole, model = model, model.get_encoder()  # type: ignore[operator]
        path = next(path for path, module in whole.named_modules() if module is model)
        prefixes = (("", f"{path}."),)
    refuse_sound_model(model, request.architecture)
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise CheckpointError(
            f"{request.architecture} takes {model.main_input_name}, not texts",
            hint="Use the task forward with arrays of that name.",
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = Unpooled()
    skip = 0 if sentence.include_prompt else count_prompt(request)
    return TextEmbedding(model, prefixes, text_inputs(model, request), sentence, skip, dtype)


def _takes_hidden(decoder: Any) -> bool:
    """Whether a decoder looks at an encoder's output; some encoders have a part of that name that does not."""
    return isinstance(decoder, nn.Module) and "encoder_hidden_states" in signature(decoder.forward).parameters
