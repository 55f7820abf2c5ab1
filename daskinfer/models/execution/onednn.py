"""oneDNN's linear layer, which torch ships and calls by operators of its own: the one place that touches them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@cache
def find_linear() -> Linear | None:
    """Return what multiplies by oneDNN; None where this build of torch cannot, or no longer does it in this way.

    Source: `torch.ops.mkldnn._linear_pointwise`, as torch's own compiler calls it
    (`torch/_inductor/mkldnn_lowerings.py`).

    Examples
    --------
    >>> multiply = find_linear()
    >>> ones = torch.ones(1, 2)
    >>> multiply is None or multiply(ones, ones, None).tolist() == [[2.0]]
    True
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        # Operators that a build lacks are found missing here; those that take something else, by the call.
        operator: Any = torch.ops.mkldnn._linear_pointwise

        def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = operator(rows, weight, bias, "none", [], "")
            return result

        _needs_torch()  # by names of torch's own that another version may not have
        # Thirds show whether it multiplies in less than float32, as ONEDNN_DEFAULT_FPMATH_MODE lets it.
        rows, weight, bias = torch.full((2, 3), 1 / 3), torch.full((4, 3), 2 / 3), torch.ones(4)
        with torch.inference_mode():
            fits = torch.allclose(multiply(rows, weight, bias), functional.linear(rows, weight, bias), rtol=1e-6)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return multiply if fits else None


def takes(rows: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN computes a linear layer of these tensors in float32 as torch would, here and now.

    It reads a bias as if its numbers lay side by side, and knows neither derivatives nor autocast.

    Examples
    --------
    >>> rows = torch.ones(1, 2)
    >>> takes(rows, rows, None), takes(rows.half(), rows.half(), None), takes(rows[:0], rows, None)
    (True, False, False)
    """
    return (
        weight.ndim == 2
        and rows.ndim > 0
        and rows.numel() > 0
        and weight.numel() > 0
        and rows.shape[-1] == weight.shape[1]
        and _is_plain(rows)
        and _is_plain(weight)
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous() and _is_plain(bias)))
        and not _needs_torch(rows, weight, bias)
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def _needs_torch(*operands: Tensor | None) -> bool:
    """Whether torch does more with these operands than multiply them: derive, map, lower their precision, compile."""
    return (
        (torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands))
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
