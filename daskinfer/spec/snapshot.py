"""Checkpoints as data: manifests, the tensors of a layer group, and what an alias resolved to."""

from __future__ import annotations

from typing import Literal

from daskinfer.ids import canonical_json, digest_of, sha256_of
from daskinfer.spec.section import Section


class PlainFile(Section):
    """A configuration or tokenizer file of a snapshot."""

    path: str
    """Name inside the checkpoint directory, e.g. config.json."""
    size: int
    """Length in bytes."""
    sha256: str
    """64 hex digits."""
    blob: str
    """Where the bytes lie, relative to the registry root."""


class TensorEntry(Section):
    """One tensor inside its group's blob."""

    name: str
    """Module name, without the base model's prefix."""
    dtype: str
    """safetensors dtype: F32, BF16, F16, I64 ..."""
    shape: tuple[int, ...]
    """Dimensions."""
    begin: int
    """First byte in the blob."""
    end: int
    """One past the last byte."""


class LayerGroup(Section):
    """The tensors of one layer, stored as one safetensors blob: the unit of cutting and of loading."""

    name: str
    """embeddings, layer.0, layer.1 ..., or the name of a head."""
    size: int
    """Length of the blob in bytes."""
    sha256: str
    """64 hex digits over the whole blob."""
    blob: str
    """Where the bytes lie, relative to the registry root."""
    tensors: tuple[TensorEntry, ...]
    """What the blob holds, in blob order."""


class Manifest(Section):
    """Everything an immutable checkpoint version consists of; its digest is the snapshot's name."""

    schema_: Literal["daskinfer.snapshot/1"] = "daskinfer.snapshot/1"
    """Format of this record."""
    model: str
    """Name it was published under."""
    architecture: str
    """Class name from the checkpoint's configuration, e.g. BertModel."""
    dtype: str
    """Precision of the stored weights, e.g. float32."""
    parent: str | None = None
    """Digest of the snapshot this one was made from."""
    files: tuple[PlainFile, ...]
    """Configuration and tokenizer files."""
    groups: tuple[LayerGroup, ...]
    """Weights, one blob a layer."""
    provenance: dict[str, str] = {}
    """Where it came from and what converted it."""

    def encode(self) -> bytes:
        """Return the canonical bytes that the snapshot digest is taken of."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """The snapshot digest, `sha256:...`."""
        return sha256_of(self.encode())

    @property
    def content(self) -> str:
        """Digest of the weights and files alone, wherever they are stored and whoever published them."""
        pieces = [(piece.path, piece.sha256) for piece in self.files]
        pieces += [(group.name, group.sha256) for group in self.groups]
        return digest_of([self.architecture, self.dtype, sorted(pieces)])

    def group(self, name: str) -> LayerGroup:
        """Return a layer group by name; `KeyError` where there is none."""
        return next(group for group in self.groups if group.name == name)


class Resolution(Section):
    """What a checkpoint reference meant at one moment."""

    reference: str
    """As the user wrote it: minilm@prod."""
    name: str
    """Model name in the registry."""
    snapshot: str
    """Snapshot digest."""
    version: int | None = None
    """Version number, where one is known."""
    alias: str | None = None
    """Alias it went through, if any."""
    sequence: int | None = None
    """Slot number of the alias head that was read."""
