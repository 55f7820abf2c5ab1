"""What a registry holds, as lists for people and programs."""

from __future__ import annotations

from typing import Literal

from daskinfer.ids import shorten
from daskinfer.spec.section import Section
from daskinfer.spec.snapshot import Resolution


class Yank(Section):
    """That a version must not be taken by name any more."""

    identity: str
    """What takes it back names it by this."""
    by: str
    """Who yanked it: user@host."""
    created: str
    """ISO 8601, UTC."""
    reason: str | None = None
    """Why, in the words of whoever did it."""

    def __str__(self) -> str:
        return f"by {self.by} at {self.created}" + (f": {self.reason}" if self.reason else "")


class VersionRow(Section):
    """A published version of a checkpoint."""

    number: int
    """From 1."""
    snapshot: str
    """Snapshot digest."""
    yanked: Yank | None = None
    """Who yanked it, and why; None while names may lead to it."""


class AliasRow(Section):
    """A movable name and where it points now."""

    name: str
    """prod, candidate ..."""
    snapshot: str
    """Snapshot digest."""
    version: int | None = None
    """Version number of that snapshot, where it has one."""


class AliasMove(Section):
    """Where an alias points, or pointed at one time."""

    alias: str
    """Its name."""
    sequence: int
    """Number of the move, from 0."""
    operation: Literal["set", "unset", "merge"]
    """A `merge` makes one of two histories of the alias."""
    snapshot: str | None
    """Snapshot digest; None where it was unset."""
    version: int | None
    """Version number of that snapshot, where it has one."""
    created: str
    """When it was moved here; ISO 8601, UTC."""
    by: str
    """Who moved it: user@host."""
    publish: str | None = None
    """Id of the publish that moved it; None where a person did."""
    reason: str | None = None
    """Why, in the words of whoever did it."""
    gate: str | None = None
    """Digest of the gate report that came with it."""
    rollback_of: int | None = None
    """The move that it took back."""
    restores: int | None = None
    """The earlier move whose target it went back to."""

    @property
    def target(self) -> str:
        """Where to, for people."""
        if self.snapshot is None:
            return "nowhere"
        return f"sha256:{shorten(self.snapshot)}" if self.version is None else f"v{self.version}"


class CheckpointRow(Section):
    """A checkpoint name in a registry, in one line."""

    name: str
    """What stands before the @."""
    versions: int
    """How many are published."""
    latest: VersionRow
    """The newest one that was not yanked; the newest of all where all were."""
    yanked: tuple[int, ...] = ()
    """Numbers of the versions that were yanked."""
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
