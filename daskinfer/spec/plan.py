"""The plan: stages, placement and sizes, frozen before anything runs."""

from __future__ import annotations

from typing import Literal

from daskinfer.ids import digest_of
from daskinfer.spec.section import Section


class LayerProfile(Section):
    """What one layer costs, known without running it."""

    name: str
    """Name of its group in the manifest."""
    parameter_bytes: int
    """Bytes of its tensors in the job's dtype."""
    flops_per_token: int
    """Multiply and add operations a token, at the model's own width."""


class ModelProfile(Section):
    """A model as planning sees it: a row of layers between an input and a head."""

    architecture: str
    """Class name, e.g. BertModel."""
    hidden: int
    """Width of the activations between layers."""
    max_positions: int
    """Longest input that the model accepts, in tokens."""
    entry: tuple[LayerProfile, ...]
    """What must run before the first layer: the embeddings."""
    layers: tuple[LayerProfile, ...]
    """The layers that can be cut between."""
    head: tuple[LayerProfile, ...]
    """What runs after the last layer."""


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


class StagePlan(Section):
    """Contiguous layers that run as one task."""

    index: int
    """Number of the stage, from 0."""
    first: int
    """First layer."""
    last: int
    """One past the last layer."""
    groups: tuple[str, ...]
    """Layer groups of its shard."""
    parameter_bytes: int
    """Bytes of its shard."""
    share: float
    """Its part of the model's FLOPs, 0 to 1."""


class Numerics(Section):
    """All that decides the bits of a result besides the weights and the rows."""

    dtype: str
    """Precision of weights and activations."""
    attention: str
    """Attention implementation."""
    threads: int
    """Cores that one stage computes with."""
    torch: str
    """Version."""
    transformers: str
    """Version."""
    tokenizers: str
    """Version."""


class Plan(Section):
    """How the job runs. Everything here but `window` and `replicas` decides bits and is kept by every resume."""

    stages: tuple[StagePlan, ...]
    """In order."""
    replicas: tuple[int, ...]
    """Workers of every stage."""
    transports: tuple[Literal["zarr", "direct"], ...]
    """One for each edge."""
    microbatch_tokens: int
    """Most padded tokens of a microbatch with more than one row."""
    max_length: int
    """Longest row in tokens."""
    window: int
    """Microbatches in flight."""
    numerics: Numerics
    """What the stages compute with."""

    @property
    def capacity(self) -> int:
        """Most padded tokens of any microbatch: a single row may exceed `microbatch_tokens`."""
        return max(self.microbatch_tokens, self.max_length)

    @property
    def digest(self) -> str:
        """Digest of what decides bits."""
        return digest_of(self.model_dump(mode="json", exclude={"window", "replicas"}))
