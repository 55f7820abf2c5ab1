"""What events and actions are about: partitions, links between workers, and where an alias points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Step = Literal["prepare", "microbatch", "commit"]


PartitionKey = tuple[int, int]
"""(generation, partition) of an attempt."""


Link = tuple[str, str]
"""A worker, and another one that it connects to."""


@dataclass(frozen=True, slots=True)
class AliasHead:
    """Where the alias pointed when it was looked at."""

    snapshot: str
    sequence: int
    version: int | None = None


def host_of(address: str) -> str:
    """Return a worker's address without its port.

    Examples
    --------
    >>> host_of("tcp://10.0.0.7:8786")
    'tcp://10.0.0.7'
    """
    return address.rpartition(":")[0]


def ends_of(link: Link) -> frozenset[str]:
    """Return what a link is known by: its hosts, as a restarted worker has another port; of one host, the addresses.

    Examples
    --------
    >>> sorted(ends_of(("tcp://10.0.0.7:8786", "tcp://10.0.0.8:8786")))
    ['tcp://10.0.0.7', 'tcp://10.0.0.8']
    >>> sorted(ends_of(("tcp://10.0.0.7:8786", "tcp://10.0.0.7:8787")))
    ['tcp://10.0.0.7:8786', 'tcp://10.0.0.7:8787']
    """
    hosts = frozenset(map(host_of, link))
    return hosts if len(hosts) == 2 else frozenset(link)
