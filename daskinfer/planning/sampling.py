"""Which partitions belong to a sample: told by a hash, so that every process and every resume gives the same answer."""

from __future__ import annotations

import hashlib

from daskinfer.ids import canonical_json

_WHOLE = 2**64


def is_sampled(job: str, partition: int, salt: str, fraction: float) -> bool:
    """Whether a partition belongs to the sample of a job.

    It does where the first eight bytes of sha256 over the canonical JSON of `[job, salt, partition]`, read as a
    big-endian integer, are below `fraction * 2**64`. So every partition is in with the probability `fraction`, by
    itself; a smaller fraction's sample lies within a larger one's; 0 takes none and 1 takes all.

    Parameters
    ----------
    job
        Job id.
    partition
        Partition number.
    salt
        Tells samples of one job apart.
    fraction
        From 0 to 1.

    Examples
    --------
    >>> [number for number in range(100) if is_sampled("embed-1", number, "", 0.05)]
    [7, 8, 45, 58]
    >>> any(is_sampled("embed-1", number, "", 0.0) for number in range(100))
    False
    """
    _check(fraction)
    return _rank(job, partition, salt) < fraction * _WHOLE


def choose_sample(job: str, partitions: int, salt: str, fraction: float) -> frozenset[int]:
    """Return the partitions of a job's sample: those of `is_sampled`, but at least one where the fraction is above 0.

    That one is the partition that would be the first in with a growing fraction, so samples stay nested.

    Parameters
    ----------
    job, salt, fraction
        As of `is_sampled`.
    partitions
        How many partitions the job has.

    Examples
    --------
    >>> sorted(choose_sample("embed-1", 100, "", 0.05))
    [7, 8, 45, 58]
    >>> len(choose_sample("embed-1", 10, "", 0.0001))
    1
    """
    _check(fraction)
    ranks = {partition: _rank(job, partition, salt) for partition in range(partitions)}
    chosen = frozenset(partition for partition, rank in ranks.items() if rank < fraction * _WHOLE)
    return chosen or frozenset([min(ranks, key=ranks.__getitem__)] if ranks and fraction else [])


def _check(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"a sample is a fraction from 0 to 1, not {fraction}")


def _rank(job: str, partition: int, salt: str) -> int:
    return int.from_bytes(hashlib.sha256(canonical_json([job, salt, partition])).digest()[:8], "big")
