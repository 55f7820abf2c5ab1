"""The name of this process on the cluster, for the trail of every microbatch."""

from __future__ import annotations

_name = "local"


def set_identity(name: str) -> None:
    """Tell this process its name: a worker's address."""
    global _name
    _name = name


def get_identity() -> str:
    """Return this process's name."""
    return _name
