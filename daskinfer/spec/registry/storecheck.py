"""What an examination of a store found."""

from __future__ import annotations

from daskinfer.spec.section import Section


class StoreCheck(Section):
    """One thing that daskinfer needs of a store."""

    name: str
    """Of the check."""
    passed: bool
    """Whether the store does it."""
    detail: str
    """What was seen; where it failed, what went wrong."""


class StoreReport(Section):
    """Whether a store is safe to keep registries, jobs and outputs on."""

    url: str
    """Folder that was examined."""
    safe: bool
    """Whether every check passed."""
    checks: tuple[StoreCheck, ...]
    """In the order they were made."""
    milliseconds: dict[str, float]
    """`create`, `read`, `list`: the median time of one with a small object; for people only."""
    hint: str | None
    """What to use instead, where it is not safe."""
