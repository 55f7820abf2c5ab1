"""Small models that no library knows: what users bring as code of their own. Each function serves as `model.entry`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Residual block over (rows, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y: Tensor = x + gate * self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return y


class OwnModel(nn.Module):
    """A stem, a body of blocks that all take a gate computed before them, and a head with two outputs.

    Examples
    --------
    >>> model = OwnModel(features=8, width=16, depth=2)
    >>> {name: tuple(value.shape) for name, value in model(torch.zeros(3, 8)).items()}
    {'scores': (3, 3), 'norm': (3,)}
    """

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.gate = nn.Linear(features, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.body = nn.ModuleList(_Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return `scores` (rows, 3) and `norm` (rows,)."""
        x = self.stem(features) * self.scale
        gate = torch.sigmoid(self.gate(features))
        for block in self.body:
            x = block(x, gate)
        return {"scores": self.head(x), "norm": x.square().mean(-1)}


class _Convolution(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class UNet(nn.Module):
    """Two lists of blocks with a skip from each block of the first to one of the second.

    Examples
    --------
    >>> tuple(UNet(channels=3, width=4, depth=2)(torch.zeros(1, 3, 16, 16))["mask"].shape)
    (1, 2, 16, 16)
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.stem = nn.Conv2d(channels, widths[0], 1)
        self.down = nn.ModuleList(_Convolution(widths[i], widths[i + 1]) for i in range(depth))
        self.up = nn.ModuleList(_Convolution(2 * widths[i + 1], widths[i]) for i in reversed(range(depth)))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return `mask` (rows, 2, height, width)."""
        x = self.stem(image)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        for block in self.up:
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skips.pop()], 1))
        return {"mask": self.head(x)}


def make_own() -> nn.Module:
    """Return a model that takes `features` (rows, 8).

    Examples
    --------
    >>> tuple(make_own()(torch.zeros(3, 8))["scores"].shape)
    (3, 3)
    """
    return fill_weights(OwnModel(8, 16, 4))


def make_unet() -> nn.Module:
    """Return a U-Net that takes `image` (rows, 3, 16, 16).

    Examples
    --------
    >>> tuple(make_unet()(torch.zeros(1, 3, 16, 16))["mask"].shape)
    (1, 2, 16, 16)
    """
    return fill_weights(UNet(3, 4, 3))


def make_sequential() -> nn.Module:
    """Return an `nn.Sequential` that takes (rows, 8) and returns (rows, 5).

    Examples
    --------
    >>> tuple(make_sequential()(torch.zeros(3, 8)).shape)
    (3, 5)
    """
    hidden = [module for _ in range(4) for module in (nn.Linear(16, 16), nn.GELU())]
    return fill_weights(nn.Sequential(nn.Linear(8, 16), *hidden, nn.Linear(16, 5)))


def fill_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a model with seeded random weights of a size that keeps numbers near 1; return it in evaluation mode.

    Statistics of batch norms are filled too, so that a model which loses them is told from one which keeps them.

    Examples
    --------
    >>> one, other = (fill_weights(nn.Linear(2, 2), seed=1) for _ in range(2))
    >>> torch.equal(one.weight, other.weight), one.training
    (True, False)
    """
    generator = torch.Generator().manual_seed(seed)
    statistics = [(name, buffer) for name, buffer in model.named_buffers() if ".running_" in name]
    with torch.no_grad():
        for name, tensor in sorted([*model.named_parameters(), *statistics], key=lambda item: item[0]):
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1 and name.endswith(("weight", "scale", "running_var")):
                tensor.copy_(1 + 0.1 * noise.clamp(-3, 3))
            else:
                tensor.copy_(noise * (0.2 if tensor.ndim < 4 else tensor[0].numel() ** -0.5))
    return model.eval()
