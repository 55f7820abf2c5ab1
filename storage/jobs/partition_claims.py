"""Claims: which member of a job computes which block of partitions.

A block's claims are a slot log, `claims/<epoch>/<block>/`; the newest record says who may commit its partitions, and its
number is the fencing token: whoever takes a block over appends the next one by compare-and-swap. The exclusive commit
record decides in the end, so a claim saves work, and makes nothing right that would be wrong without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from daskinfer.errors import ClaimLost, Conflict
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url


@dataclass(frozen=True, slots=True)
class Claim:
    """The newest word on who computes a block."""

    members: tuple[str, ...]
    """Those who may commit its partitions."""
    token: int
    """Its number among the block's claims, from 0."""


class ClaimLog:
    """The claims on the blocks of a job, in one of its lives.

    Parameters
    ----------
    url
        Folder of the job.
    epoch
        The life, which its members share.

    Examples
    --------
    >>> claims = ClaimLog("jobs/j1", epoch=1)
    >>> claims.take(0, ("ann",), token=0), claims.take(0, ("bob",), token=0)
    (True, False)
    >>> claims.take(0, ("bob",), token=1), claims.head(0)
    (True, Claim(members=('bob',), token=1))
    >>> claims.confirm(0, "ann")
    Traceback (most recent call last):
        ...
    daskinfer.errors.ClaimLost: the partitions from 0 on were taken over from member ann; bob has them
    """

    def __init__(self, url: str, epoch: int) -> None:
        self._url = join_url(url, "claims", f"{epoch:04d}")

    def head(self, block: int) -> Claim | None:
        """Return the newest claim on a block; None where nobody has claimed it."""
        head = self._log(block).head()
        return None if head is None else Claim(tuple(head.record["members"]), head.sequence)

    def take(self, block: int, members: tuple[str, ...], token: int) -> bool:
        """Claim a block for these members, with the token that follows the newest; False where another was quicker."""
        try:
            self._log(block).append({"members": list(members)}, expect=token)
        except Conflict:
            return False
        return True

    def confirm(self, block: int, member: str) -> None:
        """Make sure that a member may commit the partitions of a block.

        Raises
        ------
        ClaimLost
            Another has taken the block over.
        """
        head = self.head(block)
        if head is None or member not in head.members:
            now = " and ".join(head.members) if head is not None else "nobody"
            raise ClaimLost(f"the partitions from {block} on were taken over from member {member}; {now} has them")

    def _log(self, block: int) -> SlotLog:
        return SlotLog(join_url(self._url, f"{block:08d}"))
