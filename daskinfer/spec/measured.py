"""What the layers of a checkpoint cost: counted without their weights, and measured on a device."""

from __future__ import annotations

from typing import Literal

from daskinfer.spec.outline import Sharing, TensorSpec
from daskinfer.spec.plan import DeviceShape, Numerics
from daskinfer.spec.section import Section
from daskinfer.spec.snapshot import Resolution


class Timing(Section):
    """How long a layer took for one microbatch."""

    rows: int
    """Rows of the microbatch."""
    length: int
    """Their padded length in tokens; 1 where all rows have one shape."""
    flops: int
    """Operations that it takes."""
    seconds: float
    """Median of a few runs, copies to the device and back included."""


class MeasuredLayer(Section):
    """A layer's times, and the line through them: fixed_seconds + flops / flops_per_second."""

    name: str
    """Path of the layer."""
    like: str | None = None
    """The equal layer that was measured in its place."""
    timings: tuple[Timing, ...]
    """From the smallest microbatch to the largest."""
    fixed_seconds: float
    """What every microbatch takes, whatever its size."""
    flops_per_second: float | None
    """Operations a second beyond that; None where the times do not grow with them."""


class MeasuredProfile(Section):
    """Times of all layers of a snapshot for a task on one device."""

    schema_: Literal["daskinfer.profile/1"] = "daskinfer.profile/1"
    """Format of this record."""
    snapshot: str
    """Snapshot digest."""
    task: str
    """embed, classify, score or forward."""
    numerics: Numerics
    """Precision, cores and versions that it was measured with."""
    device: DeviceShape
    """What it was measured on."""
    code: str
    """Digest of daskinfer's own code."""
    measured: str
    """When, ISO 8601 in UTC."""
    layers: tuple[MeasuredLayer, ...]
    """In order."""


class LayerCost(Section):
    """What a layer costs, known without its weights."""

    name: str
    """Path of the layer."""
    parameter_bytes: int
    """Bytes of a shard of this layer alone, with what every stage needs."""
    flops: int
    """Operations for one token, or one row, of the typical microbatch."""
    cut: tuple[TensorSpec, ...]
    """What crosses a cut before it; empty for the first layer."""
    cut_bytes: float
    """Bytes of that for one token, or one row, of the typical microbatch."""


class CheckpointProfile(Section):
    """A checkpoint's layers, what they cost, and where they can be cut."""

    resolution: Resolution
    """Which snapshot."""
    architecture: str
    """Class name, e.g. BertModel."""
    task: str
    """What the layers were counted for."""
    dtype: str
    """Precision of weights and activations."""
    per: Literal["token", "row"]
    """What costs are told for: rows, where all have one shape."""
    rows: int
    """Rows of the typical microbatch."""
    length: int
    """Tokens of its rows; 1 where all have one shape."""
    parameter_bytes: int
    """Bytes of the whole model; what several layers share counts once."""
    flops: int
    """Operations of all layers for one token, or one row."""
    layers: tuple[LayerCost, ...]
    """In order; the model can be cut before each but the first."""
    uncut: str | None
    """Why it cannot be cut, where it cannot."""
    sharing: Sharing = Sharing()
    """Which rows may share a microbatch, and why no others."""
    left_out: str = ""
    """Outputs of the model that `forward` does not write, each with its reason."""
    measured: MeasuredProfile | None = None
    """Times on this machine's device."""
    stored: bool = False
    """Whether those were measured by an earlier call."""
