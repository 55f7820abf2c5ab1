"""What looking after registries finds: damage, differences, and what was copied."""

from __future__ import annotations

from typing import Literal

from daskinfer.spec.registry.listing import AliasMove
from daskinfer.spec.section import Section
from daskinfer.spec.snapshot import Resolution


class Finding(Section):
    """Something about a registry that should not be so."""

    damaged: bool
    """Whether it is damage; else something unfinished that does no harm."""
    what: str
    """What is wrong."""
    where: str
    """Path or URL."""
    advice: str
    """What to do about it."""


class Verification(Section):
    """What was looked at, and what was found."""

    registry: str
    """Its URL."""
    reference: str | None
    """The one checkpoint that was looked at; None for the whole registry."""
    deep: bool
    """Whether every byte was read."""
    snapshots: int
    """How many manifests were read."""
    blobs: int
    """How many blobs, and files that checkpoints refer to."""
    tensors: int
    """How many tensors; hashed, where it was deep."""
    size: int
    """Bytes of them all."""
    logs: int
    """How many logs were read from end to end."""
    findings: tuple[Finding, ...] = ()
    """Damage first."""

    @property
    def damaged(self) -> bool:
        """Whether anything is."""
        return any(finding.damaged for finding in self.findings)


class Changes(Section):
    """Names that are on one side only, or different on both."""

    added: tuple[str, ...] = ()
    """Only in the second."""
    removed: tuple[str, ...] = ()
    """Only in the first."""
    changed: tuple[str, ...] = ()
    """In both, with other content."""
    same: int = 0
    """How many are equal."""


class TensorForm(Section):
    """What a tensor is made of."""

    dtype: str
    """safetensors dtype: F32, BF16 ..."""
    shape: tuple[int, ...]
    """Dimensions."""


class TensorChange(Section):
    """How much a tensor changed."""

    group: str
    """Its layer group."""
    name: str
    """Its name."""
    before: TensorForm
    """In the first checkpoint."""
    after: TensorForm
    """In the second."""
    elements: int | None = None
    """How many were compared; None, like all that follows, where the shapes differ."""
    changed: int | None = None
    """How many of them differ."""
    greatest: int | float | None = None
    """Largest absolute difference; exact for integers."""
    mean: float | None = None
    """Mean absolute difference, over all of them."""
    relative: float | None = None
    """L2 norm of the difference over that of the first; None where that is zero."""
    not_finite: int = 0
    """Elements that differ and are NaN or infinite on a side: left out of the three numbers above."""


class Difference(Section):
    """What differs between two checkpoints."""

    before: Resolution
    """The first."""
    after: Resolution
    """The second."""
    facts: dict[str, tuple[str, str]] = {}
    """Architecture, precision and the like, where they differ: in the first, in the second."""
    files: Changes
    """Configuration and tokenizer files."""
    groups: Changes
    """Layer groups."""
    tensors: Changes
    """Tensors, as group/name."""
    changes: tuple[TensorChange, ...] = ()
    """How much each changed tensor changed, in the model's order."""
    read: int
    """Bytes of weights that were read to find out."""


Outcome = Literal["copied", "there", "deleted", "gone"]
"""It is new in the target, was there, had been deleted there and stays so, or is no more in the source."""


class SyncedVersion(Section):
    """What became of one version of the source."""

    name: str
    """Model name."""
    number: int
    """Version number in the source."""
    snapshot: str
    """Snapshot digest, the same in both."""
    outcome: Outcome
    """Whether it was copied."""
    size: int = 0
    """Bytes that were copied."""
    referred: int = 0
    """Layer groups that stay in files that the checkpoint refers to."""
    becomes: int | None = None
    """Version number in the target; None where it is not there (or would not be: in a dry run)."""


class SyncedAlias(Section):
    """What became of one alias of the source."""

    name: str
    """Model name."""
    alias: str
    """Its name."""
    outcome: Literal["equal", "ahead", "forward", "adopt", "merged", "conflict", "blocked"]
    """The target's history is equal, or ahead; got the source's newer moves; took over the source's target, which had
    taken in the target's history; was merged as told; both have news; or the snapshot cannot be had in the target."""
    moves: int = 0
    """How many were appended."""
    source: AliasMove
    """Where it points in the source, by the source's version numbers."""
    target: AliasMove | None
    """Where it pointed in the target before; None where it never did."""
    problem: str | None = None
    """Why it is blocked."""


class SyncReport(Section):
    """What a sync did, or would do."""

    source: str
    """URL of the registry that was read."""
    target: str
    """URL of the registry that was written."""
    dry_run: bool
    """Whether nothing was written."""
    versions: tuple[SyncedVersion, ...]
    """By name and number."""
    aliases: tuple[SyncedAlias, ...]
    """By name."""
    yanks: int
    """Yanks and unyanks that were appended."""
    signatures: int
    """Signatures that were copied."""

    @property
    def clean(self) -> bool:
        """Whether the target has all that it can have: no conflict, nothing blocked."""
        return not any(each.outcome in ("conflict", "blocked") for each in self.aliases)
