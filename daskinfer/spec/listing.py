"""What a registry holds, as lists for people and programs."""

from __future__ import annotations

from daskinfer.spec.section import Section
from daskinfer.spec.snapshot import Resolution


class VersionRow(Section):
    """A published version of a checkpoint."""

    number: int
    """From 1."""
    snapshot: str
    """Snapshot digest."""


class AliasRow(Section):
    """A movable name and where it points now."""

    name: str
    """prod, candidate ..."""
    snapshot: str
    """Snapshot digest."""
    version: int | None = None
    """Version number of that snapshot, where it has one."""


class CheckpointRow(Section):
    """A checkpoint name in a registry, in one line."""

    name: str
    """What stands before the @."""
    versions: int
    """How many are published."""
    latest: VersionRow
    """The newest one."""
    aliases: tuple[AliasRow, ...] = ()
    """By name."""


class CheckpointDetail(Section):
    """One snapshot, and all that goes by its checkpoint's name."""

    resolution: Resolution
    """What the reference means now."""
    architecture: str
    """Class name, e.g. BertModel."""
    dtype: str
    """Precision of the stored weights."""
    size: int
    """Bytes of weights and files together."""
    groups: dict[str, int]
    """Layer group -> bytes, in the model's order."""
    files: tuple[str, ...] = ()
    """Configuration and tokenizer files."""
    provenance: dict[str, str] = {}
    """Where it came from and what converted it."""
    versions: tuple[VersionRow, ...]
    """Oldest first."""
    aliases: tuple[AliasRow, ...] = ()
    """By name."""
