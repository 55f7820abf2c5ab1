"""What comes of comparing a finished output with its manifest."""

from __future__ import annotations

from daskinfer.spec.section import Section


class DamagedPart(Section):
    """A part of an output that is not what was committed."""

    partition: int
    """Its number."""
    problem: str
    """What is wrong, in one sentence."""


class OutputVerification(Section):
    """A finished output, compared with its manifest."""

    job: str
    """Job that wrote it."""
    output: str
    """Its URL."""
    parts: int
    """Partitions."""
    rows_out: int
    """Rows with a result, by the manifest."""
    rows_quarantined: int
    """Rows refused, by the manifest."""
    snapshots: tuple[str, ...]
    """Digests of the snapshots that computed it."""
    damaged: tuple[DamagedPart, ...]
    """What is not as the manifest says; empty where all is well."""
    strays: tuple[str, ...] = ()
    """Files among its parts that no partition has, by their paths in the output: whoever reads the folder reads them, too."""
