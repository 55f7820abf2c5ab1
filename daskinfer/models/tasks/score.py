"""Log-probabilities of texts: of every token given those before it, or given all others.

The second is the pseudo-log-likelihood of Salazar et al. 2020, https://arxiv.org/abs/1910.14659.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daskinfer.models.tasks.encode import row_length
from daskinfer.models.tasks.fields import score_kind
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.tasks.textmodel import Prefixes, build_text_model, text_inputs
from daskinfer.spec.outline import InputArray


class CausalScore(TaskModule):
    """`logprob` (rows,) float32 from `input_ids` and `attention_mask` (rows, tokens).

    Parameters
    ----------
    model, prefixes
        See `TaskModule`.
    width
        Also return `token_logprobs` (rows, width) float32, NaN where nothing was predicted; None leaves them out.
    """

    def __init__(self, model: nn.Module, prefixes: Prefixes, width: int | None) -> None:
        super().__init__(model, prefixes, text_inputs(model))
        self._width = width
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the log-probability of every row's tokens but the first."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        # Row by row: a second (rows, tokens, vocabulary) in float32 would be the largest thing in memory.
        values = torch.stack([log_probability(row[:-1], wanted[1:]) for row, wanted in zip(logits, ids, strict=True)])
        is_token = mask[:, 1:].bool()
        result = {"logprob": values.masked_fill(~is_token, 0.0).sum(1)}
        if self._width is not None:
            rest = self._width - ids.shape[1]
            known = values.masked_fill(~is_token, float("nan"))
            result["token_logprobs"] = nn.functional.pad(known, (1, rest), value=float("nan"))
        return result


class MaskedScore(TaskModule):
    """`token_logprob` (items,) float32: of the token `target` at `position`, which is masked in `input_ids`."""

    def __init__(self, model: nn.Module, prefixes: Prefixes) -> None:
        ids, mask = text_inputs(model)
        position = InputArray(name="position", dtype="int64", shape=(), bound=1)
        target = InputArray(name="target", dtype="int64", shape=(), bound=ids.bound)
        super().__init__(model, prefixes, (ids, mask, position, target))
        self.eval()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the log-probability of every item's target."""
        logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        position = inputs["position"]
        chosen = logits[torch.arange(position.shape[0], device=position.device), position]
        return {"token_logprob": log_probability(chosen, inputs["target"])}


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target, (n,) float32, from logits (n, vocabulary)."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def make_score(request: TaskRequest, dtype: str) -> TaskModule:
    """Return a language model that scores texts.

    Raises
    ------
    CheckpointError
        If the checkpoint has no head that predicts tokens.
    """
    if score_kind(request) == "masked":
        return MaskedScore(*build_text_model(request, "AutoModelForMaskedLM", dtype))
    model, prefixes = build_text_model(request, "AutoModelForCausalLM", dtype)
    return CausalScore(model, prefixes, row_length(request) if request.options.per_token else None)
