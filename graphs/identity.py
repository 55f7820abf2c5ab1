"""What this process is on the cluster: its name, for the trail of every microbatch, and its folder."""

from __future__ import annotations

_name = "local"
_folder: str | None = None


def set_identity(name: str, folder: str) -> None:
    """Tell this process its name, a worker's address, and the folder that is deleted with it."""
    global _name, _folder
    _name, _folder = name, folder


def get_identity() -> str:
    """Return this process's name."""
    return _name


def get_folder() -> str | None:
    """Return the folder for what is to go when this process goes, however it does; None for the system's own."""
    return _folder
