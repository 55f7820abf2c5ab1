"""What computes linear layers, by their size, and the choice among what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from daskinfer.errors import RecipeError
from daskinfer.spec.section import Section

Kernel = Literal["torch", "onednn"]

_SMALL, _MEDIUM = 2**16, 2**20
# What a busy machine can make of two products that are equally fast.
_GAIN = 1.25


class LinearKernels(Section):
    """What computes linear layers, by the number of their weights: they decide bits."""

    small: Kernel = "torch"
    """Layers of up to 65,536 weights."""
    medium: Kernel = "torch"
    """Layers of up to 1,048,576 weights."""
    large: Kernel = "torch"
    """Larger layers."""

    def of(self, weights: int) -> Kernel:
        """Return what computes a layer of so many weights.

        Examples
        --------
        >>> kernels = LinearKernels(large="onednn")
        >>> kernels.of(1024 * 4096), kernels.of(384 * 384)
        ('onednn', 'torch')
        """
        return self.small if weights <= _SMALL else self.medium if weights <= _MEDIUM else self.large


def choose_kernels(
    wanted: Literal["auto", "torch", "onednn"], dtype: str, device: str, speeds: Sequence[Mapping[str, float]]
) -> tuple[LinearKernels, str]:
    """Return what computes linear layers, and one sentence that says why.

    Parameters
    ----------
    wanted
        What the recipe asks for.
    dtype, device
        Precision, and kind of device: only float32 on a CPU leaves a choice.
    speeds
        Of every worker: how many times as fast as torch's own product oneDNN's is, by size of the layer, as far as it
        was measured. All workers take the same, for it decides bits: the slowest gain among them counts.

    Raises
    ------
    RecipeError
        oneDNN is asked for, and a worker does not have it.

    Examples
    --------
    >>> kernels, reason = choose_kernels("auto", "float32", "cpu", [{"medium": 2.1, "large": 2.3}, {"medium": 2.0, "large": 1.1}])
    >>> kernels.medium, kernels.large, reason
    ('onednn', 'torch', 'oneDNN for medium layers (2.0 times as fast as torch), torch for all others')
    >>> choose_kernels("auto", "float32", "cpu", [{}])[1]
    'torch: oneDNN is not there or was not measured'
    """
    if dtype != "float32" or device != "cpu":
        told = f"torch: oneDNN is only used for float32 on a CPU, and this is {dtype} on {device}"
        return LinearKernels(), told if wanted == "onednn" else ""
    if wanted == "onednn" and not all(speeds):
        raise RecipeError(
            f"model.kernels is onednn, but torch on {sum(not speed for speed in speeds)} of {len(speeds)} worker(s) does "
            "not have it",
            hint="Leave model.kernels on auto.",
        )
    if wanted != "auto":
        return LinearKernels(small=wanted, medium=wanted, large=wanted), f"{wanted}, as the recipe says"
    sizes = tuple(LinearKernels.model_fields)
    gains = {size: min((speed.get(size, 0.0) for speed in speeds), default=0.0) for size in sizes}
    chosen = {size: gain for size, gain in gains.items() if gain >= _GAIN}
    if chosen:
        listed = ", ".join(f"{size} layers ({gain:.1f} times as fast as torch)" for size, gain in chosen.items())
        others = ", torch for all others" if len(chosen) < len(sizes) else ""
        return LinearKernels.model_validate(dict.fromkeys(chosen, "onednn")), f"oneDNN for {listed}{others}"
    if not any(gains.values()):
        return LinearKernels(), "torch: oneDNN is not there or was not measured"
    best = max(gains.values())
    return LinearKernels(), f"torch: oneDNN's products are at best {best:.2f} times as fast here"
