"""How many rows a job may quarantine."""

from __future__ import annotations

from daskinfer.runtime.protocol.actions import Action, Fail
from daskinfer.runtime.state_machine.failures import refuse_rejects


class RejectBudget:
    """Rows that are quarantined, and how many may be.

    Parameters
    ----------
    limit
        How many may be.
    spent
        How many are, in what earlier runs have committed.

    Examples
    --------
    >>> budget = RejectBudget(limit=2, spent=1)
    >>> budget.spend(1)
    >>> budget.check(poisonous=0), len(budget.check(poisonous=1))
    ([], 1)
    """

    def __init__(self, limit: int, spent: int) -> None:
        self._limit = limit
        self._spent = spent

    def spend(self, rows: int) -> None:
        """Take in that rows were quarantined."""
        self._spent += rows

    def recount(self, rows: int) -> None:
        """Take in how many rows are quarantined in what counts now."""
        self._spent = rows

    def check(self, poisonous: int) -> list[Action]:
        """Return `Fail` where too many rows are refused, counting those that are known and not committed yet."""
        rejects = self._spent + poisonous
        return [] if rejects <= self._limit else [Fail(refuse_rejects(rejects, self._limit))]
