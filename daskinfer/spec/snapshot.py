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
    blake3: str
    """64 hex digits over its bytes: what every load verifies."""
    dtype: str
    """safetensors dtype: F32, BF16, F16, I64 ..."""
    shape: tuple[int, ...]
    """Dimensions."""
    begin: int
    """First byte in the blob, or in `file`."""
    end: int
    """One past the last byte."""
    file: str | None = None
    """URL of the checkpoint's own file that holds the bytes, where it was published by reference."""


class LayerGroup(Section):
    """The tensors of one layer, stored as one safetensors blob: the unit of cutting and of loading."""

    name: str
    """Path of its unit in the model: `embeddings`, `encoder.layer.0`, `lm_head`."""
    size: int
    """Length in bytes of its blob, or of what would be one."""
    sha256: str
    """64 hex digits over the whole blob."""
    blob: str | None
    """Where the bytes lie, relative to the registry root; None where every tensor names its own file."""
    tensors: tuple[TensorEntry, ...]
    """What the blob holds, in blob order."""


class EntryPoint(Section):
    """Code outside transformers that builds the model."""

    function: str
    """`package.module:function`; called without arguments, returns a `torch.nn.Module`."""
    source: str
    """sha256 digest of the source file that the function is in."""


class Manifest(Section):
    """Everything an immutable checkpoint version consists of; its digest is the snapshot's name."""

    schema_: Literal["daskinfer.snapshot/1", "daskinfer.snapshot/2"] = "daskinfer.snapshot/2"
    """Format of this record; the digest of a `daskinfer.snapshot/1` is that of all its bytes."""
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
    tied: dict[str, str] = {}
    """Name of a tensor that is stored under another name -> that name."""
    entry: EntryPoint | None = None
    """The user's own code that builds the model; None where transformers does."""
    provenance: dict[str, str] = {}
    """Where it came from and what converted it."""
    salt: str | None = None
    """Id of its publish, where the registry had deleted or damaged a snapshot of the same content: a digest that was
    deleted never lives again."""
    checksum: str | None = None
    """Digest of all else in the stored bytes, with what the snapshot's digest is not taken of; None in memory."""

    def encode(self) -> bytes:
        """Return the canonical bytes to store."""
        if self.schema_ == "daskinfer.snapshot/1":
            return canonical_json(self.model_dump(mode="json", exclude={"salt", "checksum"}))
        fields = self.model_dump(mode="json", exclude={"checksum"})
        return canonical_json(fields | {"checksum": digest_of(fields)})

    @property
    def digest(self) -> str:
        """The snapshot digest, `sha256:...`: of what is computed with, wherever it lies and whoever published it."""
        if self.schema_ == "daskinfer.snapshot/1":
            return sha256_of(self.encode())
        files = [[piece.path, piece.size, piece.sha256] for piece in self.files]
        groups = [
            [
                group.name,
                group.size,
                group.sha256,
                [[each.name, each.blake3, each.dtype, each.shape] for each in group.tensors],
            ]
            for group in self.groups
        ]
        code = None if self.entry is None else self.entry.model_dump(mode="json")
        return digest_of([self.schema_, self.architecture, self.dtype, files, groups, self.tied, code, self.salt])

    @property
    def content(self) -> str:
        """Digest of the weights and files alone, wherever they are stored and whoever published them."""
        pieces = [(piece.path, piece.sha256) for piece in self.files]
        pieces += [(group.name, group.sha256) for group in self.groups]
        code = None if self.entry is None else self.entry.model_dump()
        return digest_of([self.architecture, self.dtype, sorted(pieces), self.tied, code])

    @property
    def pieces(self) -> tuple[PlainFile | LayerGroup, ...]:
        """Files and groups."""
        return (*self.files, *self.groups)

    @property
    def blobs(self) -> dict[str, int]:
        """Every blob that it names, relative to the registry root, and its length in bytes."""
        return {piece.blob: piece.size for piece in self.pieces if piece.blob is not None}

    @property
    def code(self) -> tuple[str, ...]:
        """Names of the files that are code; they run only for who trusts them."""
        return tuple(piece.path for piece in self.files if piece.path.endswith(".py"))

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
