"""The plan: stages, placement and sizes, frozen before anything runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from daskinfer.ids import digest_of
from daskinfer.spec.kernels import LinearKernels
from daskinfer.spec.outline import Sharing, TensorSpec
from daskinfer.spec.section import Section


class LayerProfile(Section):
    """What one layer costs, known without running it."""

    name: str
    """Name of its module: `encoder.layer.3`."""
    tensors: tuple[str, ...]
    """Names in the snapshot of all tensors that it and what runs with it needs."""
    flops: tuple[int, int]
    """Operations of a row of L tokens: first * L + second * L**2; of a row, where lengths are fixed: first."""
    cut: tuple[TensorSpec, ...]
    """What crosses a cut before it; empty for the first layer."""


class ModelProfile(Section):
    """A model as planning sees it: a row of layers, and what crosses between them."""

    architecture: str
    """Class name, e.g. BertModel."""
    max_length: int | None
    """Longest row that the model accepts, in tokens; None where there is no limit."""
    row_tokens: int | None = None
    """Tokens that a row counts as, for models whose rows all have one shape; None for text."""
    layers: tuple[LayerProfile, ...]
    """The layers that can be cut between; whatever runs before, between and after them is part of one."""
    shared: tuple[str, ...] = ()
    """Tensors that every stage needs."""
    sizes: dict[str, int]
    """Bytes of every tensor in the job's precision."""
    stored: dict[str, int] = {}
    """Bytes of the tensors that are stored in another precision than the job's."""
    uncut: str | None = None
    """Why the model cannot be cut, where it cannot."""
    sharing: Sharing = Sharing()
    """Which rows may share a microbatch."""

    def stage_bytes(self, first: int, last: int) -> int:
        """Return the bytes of a shard of the layers [first, last); a tensor that several of them need counts once."""
        return sum(self.sizes[name] for name in self._needed(first, last))

    def stored_bytes(self, first: int, last: int) -> int:
        """Return the bytes that a shard of the layers [first, last) takes in the snapshot."""
        return sum(self.stored.get(name, self.sizes[name]) for name in self._needed(first, last))

    def work(self, first: int, last: int, length: int) -> int:
        """Return the operations that the layers [first, last) need for a row of `length` tokens."""
        flops = [layer.flops for layer in self.layers[first:last]]
        if self.row_tokens is not None:
            return sum(row for row, _ in flops)
        return sum(linear * length + square * length**2 for linear, square in flops)

    def _needed(self, first: int, last: int) -> set[str]:
        return {name for layer in self.layers[first:last] for name in layer.tensors} | set(self.shared)


class DeviceShape(Section):
    """What a worker computes on."""

    kind: Literal["cuda", "mps", "cpu"]
    """Kind of device, as torch calls it."""
    name: str
    """What its maker calls it."""
    memory: int
    """Bytes: its own, or the machine's for a CPU."""
    threads: int
    """CPU cores that the process may use."""
    bf16: bool
    """Whether it computes bfloat16 faster than float32."""
    fp16: bool
    """Whether it computes float16 faster than float32."""
    onednn: dict[str, float] = {}
    """How many times as fast as torch's own product oneDNN's is in float32, by size of the layer, as measured there."""


UNKNOWN_DEVICE = DeviceShape(kind="cpu", name="a CPU", memory=0, threads=1, bf16=False, fp16=False)
"""Stands for a device that nobody asked about."""


class WorkerShape(Section):
    """A worker as planning sees it."""

    address: str
    """Address on the cluster."""
    threads: int
    """Cores it computes with."""
    memory: int
    """Bytes it may use; 0 where unknown."""
    resources: dict[str, float]
    """Tags that it declares."""
    device: DeviceShape = UNKNOWN_DEVICE
    """What it computes on."""
    name: str = ""
    """What the cluster calls it."""

    @property
    def shard_memory(self) -> int:
        """Bytes that a shard competes for; 0 where unknown."""
        return self.memory if self.device.kind == "cpu" else self.device.memory


class StagePlan(Section):
    """Contiguous layers that run as one task."""

    index: int
    """Number of the stage, from 0."""
    first: int
    """First layer."""
    last: int
    """One past the last layer."""
    parameter_bytes: int
    """Bytes of its shard in the job's precision."""
    stored_bytes: int = 0
    """Bytes of its shard as the snapshot stores it: what a worker reads."""
    share: float
    """Its part of the model's FLOPs, 0 to 1."""
    offload: Literal["none", "cpu", "disk"] = "none"
    """Where its weights wait for their turn on the device, where they do not fit it."""


class Numerics(Section):
    """All that decides the bits of a result besides the weights and the rows."""

    dtype: str
    """Precision of weights and activations."""
    device: str = "cpu"
    """Kind of device: cpu, cuda or mps."""
    attention: str
    """Attention implementation."""
    kernels: LinearKernels = LinearKernels()
    """What computes its linear layers."""
    threads: int
    """Cores that one stage computes with."""
    torch: str
    """Version."""
    transformers: str
    """Version."""
    tokenizers: str
    """Version."""
    pillow: str | None = None
    """Version, where the job reads images."""


class Plan(Section):
    """How the job runs. Everything here but `window`, `window_bytes` and `replicas` decides bits and is kept by every resume."""

    stages: tuple[StagePlan, ...]
    """In order."""
    replicas: tuple[int, ...]
    """Workers of every stage."""
    edges: tuple[tuple[TensorSpec, ...], ...]
    """What crosses from each stage to the next."""
    transports: tuple[Literal["zarr", "direct"], ...]
    """One for each edge."""
    microbatch_tokens: int
    """Most padded tokens of a microbatch with more than one row."""
    sharing: Sharing = Sharing()
    """Which rows may share one."""
    max_length: int
    """Longest row in tokens; what every row counts as, where `is_text` is false."""
    is_text: bool = True
    """Whether rows are tokens of different number; otherwise they are arrays of one shape."""
    window: int
    """Microbatches in flight, to begin with."""
    window_bytes: int = 0
    """Bytes that they may take together as the window adapts; 0: it stays as it is."""
    numerics: Numerics
    """What the stages compute with."""

    @model_validator(mode="after")
    def _validate(self) -> Self:
        """Refuse a plan whose parts contradict each other: whoever holds one need not check it again."""
        stages = self.stages
        if not stages or [stage.index for stage in stages] != list(range(len(stages))):
            raise ValueError("the stages of a plan are numbered from 0")
        if [stage.first for stage in stages] != [0, *(stage.last for stage in stages[:-1])]:
            raise ValueError("every stage of a plan begins with the layer after the last one of the stage before it")
        if not len(stages) == len(self.replicas) == len(self.edges) + 1 == len(self.transports) + 1:
            raise ValueError("a plan has a number of workers for every stage, and a transport between any two")
        return self

    def explain(self) -> str:
        """Return a line for people: how the model is cut, on how many workers, and in what precision.

        Examples
        --------
        >>> numerics = Numerics(dtype="float32", attention="sdpa", threads=1, torch="2", transformers="5", tokenizers="0")
        >>> stage = StagePlan(index=0, first=0, last=6, parameter_bytes=90_000_000, share=1.0)
        >>> Plan(stages=(stage,), replicas=(2,), edges=(), transports=(), microbatch_tokens=2048, max_length=256,
        ...      window=6, numerics=numerics).explain()
        '6 layers in 1 stage(s) on 2 worker(s), float32, texts of at most 256 tokens'
        """
        workers = f"{self.stages[-1].last} layers in {len(self.stages)} stage(s) on {sum(self.replicas)} worker(s)"
        longest = f", texts of at most {self.max_length} tokens" if self.is_text else ""
        return f"{workers}, {self.numerics.dtype}{longest}"

    @property
    def capacity(self) -> int:
        """Most padded tokens of any microbatch: a single row may exceed `microbatch_tokens`."""
        return max(self.microbatch_tokens, self.max_length)

    @property
    def largest(self) -> tuple[int, int]:
        """Most of a microbatch as (rows times length, length), as sizes of tensors depend on them."""
        return (self.capacity, self.max_length) if self.is_text else (self.capacity // self.max_length, 1)

    @property
    def digest(self) -> str:
        """Digest of what decides bits."""
        return digest_of(self.model_dump(mode="json", exclude={"window", "window_bytes", "replicas"}))
