"""What looking after registries finds: damage, differences, and what was copied."""

from __future__ import annotations

from daskinfer.spec.section import Section


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
