"""A small model that some rows break: they raise, hang, kill their worker, or are slow."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from daskinfer.testing.models.ownmodels import fill_weights

FEATURES = 4
RAISES, HANGS, KILLS, NAPS = 1000.0, 2000.0, 3000.0, 4000.0
"""What a row has in its first place to do it, in the layer of the number in its second place."""
NAP_SECONDS = 1.0
CLEARED = "DASKINFER_MINES_CLEARED"
"""Environment variable that names a file: once it is there, no row raises any more."""


class _Layer(nn.Module):
    """Steps on whatever lies in its way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        if not marks.is_meta:
            here = marks[marks[:, 1] == self.number, 0]
            if (here == NAPS).any():
                time.sleep(NAP_SECONDS)
            if (here == RAISES).any() and not _is_cleared():
                raise ValueError(f"row of {x.shape[0]} cannot be computed, at {hex(id(x))}")
            if (here == KILLS).any():
                os.kill(os.getpid(), signal.SIGKILL)
            while (here == HANGS).any():
                time.sleep(0.1)
        y: Tensor = x + torch.tanh(self.linear(x))
        return y


def _is_cleared() -> bool:
    place = os.environ.get(CLEARED)
    return place is not None and Path(place).exists()


class Minefield(nn.Module):
    """Layers over (rows, 4).

    Examples
    --------
    >>> with torch.inference_mode():
    ...     {name: tuple(value.shape) for name, value in Minefield(depth=2)(torch.zeros(3, FEATURES)).items()}
    {'sums': (3, 4)}
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(number) for number in range(depth))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return `sums` (rows, 4)."""
        marks = features
        x = torch.tanh(features)
        for layer in self.layers:
            x = layer(x, marks)
        return {"sums": x}


def make_minefield() -> nn.Module:
    """Return a model that takes `features` (rows, 4).

    Examples
    --------
    >>> len(make_minefield().layers)
    2
    """
    return fill_weights(Minefield(2))
