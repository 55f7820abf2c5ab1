"""A module of one's own, for recipes/forward_arrays.yaml: layers in a list can be cut between."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tagger(nn.Module):
    """Eight features in, three scores and a norm out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.body = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return `scores` (rows, 3) and `norm` (rows,)."""
        x = self.stem(features)
        for layer in self.body:
            x = x + torch.tanh(layer(x))
        return {"scores": self.head(x), "norm": x.square().mean(-1)}


def build() -> nn.Module:
    """Return the module with its weights, the same at every call."""
    torch.manual_seed(0)
    return Tagger()
