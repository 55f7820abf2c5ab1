"""Drivers that run a job together, as reports and status show them."""

from __future__ import annotations

from daskinfer.spec.section import Section


class MemberShare(Section):
    """What one of several drivers that ran a job together did."""

    member: str
    """Its id."""
    driver: str
    """host:pid."""
    partitions: int
    """Partitions that it committed."""
    rows: int
    """Rows of these."""


class MemberStatus(Section):
    """One of the drivers that run a job together."""

    member: str
    """Its id."""
    driver: str
    """host:pid."""
    is_alive: bool
    """Whether it seems to live."""
    heartbeat_age: float
    """Seconds since it wrote its heartbeat, by this machine's clock."""
    rows_done: int
    """Rows that it has committed itself."""
