"""What this process is on the cluster: its name, for the trail of every microbatch, and its folder."""

from __future__ import annotations

_name = "local"
_folder: str | None = None


def set_identity(name: str, folder: str) -> None:
    """Tell this process its name, a worker's address, and the folder that is deleted with it.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.multiple(__name__, _name="local", _folder=None):
    ...     set_identity("tcp://10.0.0.7:8786", "/tmp/worker")
    ...     get_identity(), get_folder()
    ('tcp://10.0.0.7:8786', '/tmp/worker')
    """
    global _name, _folder
    _name, _folder = name, folder


def get_identity() -> str:
    """Return this process's name.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.multiple(__name__, _name="local", _folder=None):
    ...     get_identity()
    'local'
    """
    return _name


def get_folder() -> str | None:
    """Return the folder for what is to go when this process goes, however it does; None for the system's own.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.multiple(__name__, _name="local", _folder="/tmp/worker"):
    ...     get_folder()
    '/tmp/worker'
    """
    return _folder
