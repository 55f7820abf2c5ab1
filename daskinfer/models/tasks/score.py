"""Log-probabilities of texts: of every token given those before it, or given all others.

The second is the pseudo-log-likelihood of Salazar et al. 2020, https://arxiv.org/abs/1910.14659.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import row_length
from daskinfer.models.tasks.fields import score_kind
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.textmodel import Prefixes, TextInputs, build_text_model, text_inputs
from daskinfer.spec.outline import InputArray


class ScoreModule(TaskModule):
    """A model with a head that predicts tokens.

    Examples
    --------
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(None,))
    >>> module = ScoreModule(nn.Identity(), (), TextInputs((ids,), ("input_ids",)))
    >>> [array.name for array in module.inputs]
    ['input_ids']
    """

    is_causal: bool
    """Whether a token is predicted from those before it; else from all others."""

    def __init__(
        self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs, more: tuple[InputArray, ...] = ()
    ) -> None:
        super().__init__(model, prefixes, (*inputs.arrays, *more))
        self._text = inputs
        self._only_logits = False
        self.eval()

    @contextmanager
    def only_logits(self) -> Iterator[None]:
        """Return the model's `logits` (rows, tokens, vocabulary) and nothing else meanwhile."""
        self._only_logits = True
        try:
            yield
        finally:
            self._only_logits = False

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return what the task makes of the logits."""
        logits = self._text.run(self.model, inputs).logits
        return {"logits": logits} if self._only_logits else self.score(logits, inputs)

    def score(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the task's arrays, rows first."""
        raise NotImplementedError


class CausalScore(ScoreModule):
    """`logprob` (rows,) float32 from what a tokenizer returns, (rows, tokens) each.

    Parameters
    ----------
    model, prefixes
        See `TaskModule`.
    inputs
        What the model is given of a text.
    width
        Also return `token_logprobs` (rows, width) float32, 0 where nothing was predicted; None leaves them out.

    Examples
    --------
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(None,))
    >>> module = CausalScore(nn.Identity(), (), TextInputs((ids,), ("input_ids",)), width=None)
    >>> inputs = {"input_ids": torch.tensor([[0, 1]]), "attention_mask": torch.tensor([[1, 1]])}
    >>> module.score(torch.zeros(1, 2, 4), inputs)["logprob"]
    tensor([-1.3863])
    """

    is_causal = True

    def __init__(self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs, width: int | None) -> None:
        super().__init__(model, prefixes, inputs)
        self._width = width

    def score(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the log-probability of every row's tokens but the first."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        # Row by row: a second (rows, tokens, vocabulary) in float32 would be the largest thing in memory.
        values = torch.stack([log_probability(row[:-1], wanted[1:]) for row, wanted in zip(logits, ids, strict=True)])
        is_token = mask[:, 1:].bool()
        known = values.masked_fill(~is_token, 0.0)
        if self._width is None:
            return {"logprob": known.sum(1)}
        # Not NaN: the proof of a cut takes that for a tensor that did not cross it.
        return {"logprob": known.sum(1), "token_logprobs": nn.functional.pad(known, (1, self._width - ids.shape[1]))}


class MaskedScore(ScoreModule):
    """`token_logprob` (items,) float32: of the token `target` at `position`, which is masked in `input_ids`.

    Examples
    --------
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(None,), bound=4)
    >>> module = MaskedScore(nn.Identity(), (), TextInputs((ids,), ("input_ids",)))
    >>> inputs = {"position": torch.tensor([1]), "target": torch.tensor([3])}
    >>> module.score(torch.zeros(1, 2, 4), inputs)["token_logprob"]
    tensor([-1.3863])
    """

    is_causal = False

    def __init__(self, model: nn.Module, prefixes: Prefixes, inputs: TextInputs) -> None:
        position = InputArray(name="position", dtype="int64", shape=(), bound=1)
        target = InputArray(name="target", dtype="int64", shape=(), bound=inputs.arrays[0].bound)
        super().__init__(model, prefixes, inputs, (position, target))

    def score(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the log-probability of every item's target."""
        position = inputs["position"]
        chosen = logits[torch.arange(position.shape[0], device=position.device), position]
        return {"token_logprob": log_probability(chosen, inputs["target"])}


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target, (n,) float32, from logits (n, vocabulary).

    Examples
    --------
    >>> log_probability(torch.zeros(1, 4), torch.tensor([2]))
    tensor([-1.3863])
    """
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def make_score(request: TaskRequest, dtype: str) -> TaskModule:
    """Return a language model that scores texts.

    Raises
    ------
    CheckpointError
        If the checkpoint has no head that predicts tokens.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> [array.name for array in make_score(ask_tiny("score", "BertForMaskedLM"), "float32").inputs]
    ['input_ids', 'attention_mask', 'position', 'target']
    """
    if score_kind(request) == "masked":
        model, prefixes = build_text_model(request, "AutoModelForMaskedLM", dtype)
        return MaskedScore(model, prefixes, text_inputs(model, request))
    model, prefixes = build_text_model(request, "AutoModelForCausalLM", dtype)
    width = row_length(request) if request.options.per_token else None
    return CausalScore(model, prefixes, text_inputs(model, request), width)
