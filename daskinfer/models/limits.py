"""How much memory and how many cores this process may use: the least of what the machine has and its cgroups allow.

Containers and batch systems limit by cgroups, which neither psutil nor Python know. A limit may stand in the process's own
group or in any above it, as far as they can be seen from here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
from dask.system import cpu_count

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# cgroup v2, then v1, which has a tree for each controller.
_MEMORY_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
_CPU_FILE = "cpu.max"
_QUOTA_FILE, _PERIOD_FILE = "cpu.cfs_quota_us", "cpu.cfs_period_us"


def memory_limit(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes of memory that this process and those it starts may use together.

    Parameters
    ----------
    groups
        Where cgroups are mounted.
    membership
        File that says which of them this process is in.

    Examples
    --------
    >>> 0 < memory_limit() <= psutil.virtual_memory().total
    True
    >>> Path("memory.max").write_text("1000000") and memory_limit(Path("."), Path("nowhere"))
    1000000
    """
    limits = [psutil.virtual_memory().total]
    for folder in _find_groups("memory", groups, membership):
        found = (_read_number(folder / name) for name in _MEMORY_FILES)
        limits += [limit for limit in found if limit]
    return min(limits)


def core_limit(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the cores that this process and those it starts may use together; parameters as of `memory_limit`.

    Examples
    --------
    >>> core_limit() >= 1
    True
    >>> Path("cpu.max").write_text("50000 100000") and core_limit(Path("."), Path("nowhere"))
    1
    """
    limits: list[int] = [cpu_count()]  # which knows affinity
    for folder in _find_groups("cpu", groups, membership):
        quota, period = _read_number(folder / _QUOTA_FILE), _read_number(folder / _PERIOD_FILE)
        if not quota:
            quota, period = _read_number(folder / _CPU_FILE, 0), _read_number(folder / _CPU_FILE, 1)
        if quota and period:
            limits.append(math.ceil(quota / period))
    return max(1, min(limits))


def _find_groups(controller: str, groups: Path, membership: Path) -> Iterator[Path]:
    """Return the folders of the process's groups, and of those above them, that may limit what a controller gives."""
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [groups / controllers, groups / controller] if controllers else [groups, groups / "unified"]
        for mount in dict.fromkeys(mounts):
            # In a container the path may be the host's: then only the root is there, and it is the container's group.
            group = Path(os.path.normpath("/" + path.strip("/")))
            for part in (group, *group.parents):
                yield mount / part.relative_to("/")
    # Where there is no membership to read, the root is all there is.
    yield from (groups, groups / controller)


def _read_number(path: Path, word: int = 0) -> int:
    """Return a positive number of a file; 0 where there is none, or no limit."""
    words = (_read(path) or "").split()
    return int(words[word]) if len(words) > word and words[word].isdecimal() else 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
