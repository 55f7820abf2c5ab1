"""Who may do what to a registry, what they did, and who vouches for a snapshot: as data for people and programs."""

from __future__ import annotations

from typing import Literal

from daskinfer.ids import digest_of
from daskinfer.spec.section import Section


class RoleRow(Section):
    """What somebody does with a registry, and which of its objects they may write; everyone may read all."""

    name: str
    """publisher, releaser, runner or collector."""
    purpose: str
    """In a few words."""
    create: tuple[str, ...]
    """Created once, never changed: paths in the registry, `*` for anything."""
    replace: tuple[str, ...]
    """Also overwritten."""
    delete: tuple[str, ...]
    """Deleted."""


class AuditEvent(Section):
    """What somebody decided about a registry. The events of one principal are a chain of digests."""

    at: str
    """ISO 8601 to the millisecond, UTC, by the principal's clock."""
    by: str
    """Principal: user@host."""
    action: str
    """publish, yank, alias, lock, collect or sign."""
    resource: str
    """What about, relative to the registry: `models/minilm/aliases/prod`."""
    operation: str | None = None
    """The record's own word for it: begin, commit, set, condemn ..., where it has one."""
    record: str
    """Path of the record in the registry."""
    digest: str
    """`sha256:...` of the record's bytes."""
    client: str
    """Version of daskinfer."""
    previous: str | None = None
    """`sha256:...` of the bytes of the principal's previous event; None for the first."""

    @property
    def checksum(self) -> str:
        """Digest of all of it: what finds a changed newest event, which no other one vouches for."""
        return digest_of(self.model_dump(mode="json"))


class AuditFinding(Section):
    """Something about a registry's events or records that is not as it should be."""

    severity: Literal["broken", "warning"]
    """`broken`: something was changed, deleted or inserted; `warning`: what a crash may leave behind."""
    where: str
    """Path in the registry."""
    what: str
    """What is wrong with it."""


class AuditTrail(Section):
    """The events of a registry, and whether they and the records they tell of are whole."""

    registry: str
    """URL."""
    events: tuple[AuditEvent, ...]
    """By time."""
    findings: tuple[AuditFinding, ...]
    """By place; none where all is well."""
    checked: int
    """How many events were verified."""

    @property
    def broken(self) -> tuple[AuditFinding, ...]:
        """The findings that mean a change, not a crash."""
        return tuple(finding for finding in self.findings if finding.severity == "broken")


class SignatureRow(Section):
    """A signature of a snapshot."""

    key: str
    """Name of the key as the signature has it: `sha256:...` of the public key."""
    by: str
    """Who ran the command: user@host."""
    at: str
    """ISO 8601, UTC."""
    valid: bool | None = None
    """Whether it is the word of the key that it was held against; None where there was none."""
