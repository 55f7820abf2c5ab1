"""From hidden states to one vector a row: sentence-transformers' operations, in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pool(hidden: Tensor, mask: Tensor, modes: tuple[str, ...]) -> Tensor:
    """Return one vector a row, the modes' vectors joined.

    Parameters
    ----------
    hidden
        Hidden states, (rows, tokens, width) float32.
    mask
        1 for the tokens that count, (rows, tokens) int64.
    modes
        cls, max, mean, mean_sqrt_len, weightedmean, lasttoken.

    Returns
    -------
    Tensor
        (rows, modes * width) float32.

    Examples
    --------
    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pool(hidden, torch.tensor([[1, 1, 0]]), ("mean", "max", "lasttoken"))
    tensor([[2., 3., 3.]])
    """
    return torch.cat([_MODES[mode](hidden, mask) for mode in modes], -1)


def _cls(hidden: Tensor, mask: Tensor) -> Tensor:
    # Also where a prompt is left out, as sentence-transformers has it; padding is on the right.
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    reverse = mask.to(torch.int32).flip(1).argmax(1)
    return _take(hidden, mask.shape[1] - 1 - reverse)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(1).values


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(hidden, _spread(mask, hidden))
    return total / count


def _mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(hidden, _spread(mask, hidden))
    return total / torch.sqrt(count)


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    total, count = _sum(hidden, _spread(mask * places, hidden))
    return total / count


_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def _spread(weights: Tensor, hidden: Tensor) -> Tensor:
    return weights.unsqueeze(-1).expand(hidden.shape).to(hidden.dtype)


def _sum(hidden: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sum(hidden * weights, 1), torch.clamp(weights.sum(1), min=1e-9)


def _take(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.gather(1, places.to(torch.int64)[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
