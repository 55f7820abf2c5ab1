"""Retries of quarantined rows, as a report tells of them."""

from __future__ import annotations

from daskinfer.spec.section import Section


class RetryShare(Section):
    """What one retry of a job's quarantined rows did."""

    round: int
    """Number of the retry, from 1; 0 for one that finished a job that had stopped."""
    rows_retried: int
    """Quarantined rows that it computed again."""
    rows_recovered: int
    """Those of them that are in the output since."""
    inputs: str
    """Digest of the input files as it read them."""
    seconds: float = 0.0
    """The whole retry."""
    report: str = ""
    """URL of its own HTML report; empty where it was killed before it could write one."""
