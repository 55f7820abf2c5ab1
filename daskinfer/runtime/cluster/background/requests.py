"""A local cluster that waits in the background: its workers have started before a run needs them.

A process of its own (`server.py`) keeps it. It hands each cluster to one run only, for as long as the run's
connection is open, and then makes another one: nothing of a run is left for the next. Runs and commands talk to it over a
Unix socket in a folder of the user's own, so that the cluster's key is on no disk, and a run that is killed lets go.

Nothing of Dask is imported here: a command asks before it imports what it needs itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import resource
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from daskinfer.runtime.cluster.private_folder import find_private, make_private, open_private
from daskinfer.source import digest_source
from daskinfer.spec.background import BackgroundOffer, BackgroundReply, BackgroundRequest, BackgroundStatus
from daskinfer.spec.recipe.schema import LocalCluster
from daskinfer.units import format_amount

ANSWER_SECONDS = 10.0
"""How long a run waits for an answer: between two runs workers are made anew."""
LOOK_SECONDS = 2.0
"""How long a command waits for an answer about how it stands."""
TAKEN = 75
"""Exit code of a process that cannot keep the cluster, because another one does."""
_LONGEST = 1 << 20  # bytes of a message
# What computes, encodes or stores rows; another one may have been installed since the workers imported it.
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "zarr", "dask", "distributed", "fsspec")
# Variables that tell of the terminal, the shell or the session, and nothing that workers do.
_UNRELATED = re.compile(
    r"_|COLUMNS|LINES|OLDPWD|PWD|PS\d|SHLVL|TERM|TERM_.*|COLORTERM|NO_COLOR|FORCE_COLOR|WINDOW|WINDOWID|STY|TMUX.*|SSH_(CLIENT|CONNECTION|TTY)|"
    r"XDG_SESSION_.*|DBUS_SESSION_BUS_ADDRESS|GNOME_TERMINAL_.*|ITERM_.*|KITTY_.*|ALACRITTY_.*|WEZTERM_.*|VSCODE_.*|WT_.*|"
    r"INVOCATION_ID|JOURNAL_STREAM|AIRFLOW_CTX_.*"
)


def socket_path(make: bool = False) -> Path | None:
    """Return where the background cluster listens; None where no folder is this user's own.

    Parameters
    ----------
    make
        Make the folder where there is none.

    Examples
    --------
    >>> socket_path(make=True).name
    'background.sock'
    """
    parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = make_private(parent) if make else find_private(parent)
    return None if folder is None else folder / "background.sock"


def describe_circumstances(local: LocalCluster) -> dict[str, str]:
    """Return all that workers depend on, by name: a run uses only workers that it would have started itself.

    Values that may be secret are digests.

    Examples
    --------
    >>> describe_circumstances(LocalCluster(workers=2, threads=1))["workers"]
    '2 workers with 1 thread'
    """
    folder, program = Path.cwd(), Path(sys.argv[0])
    own = {"", str(folder), str(program.parent), str(program.resolve().parent)}
    threads = format_amount(local.threads, "thread")
    limits = {
        name: resource.getrlimit(getattr(resource, name)) for name in sorted(vars(resource)) if name[:7] == "RLIMIT_"
    }
    tags = {tag: float(amount) for tag, amount in local.resources.items()}
    variables = {
        f"the variable {name}": hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()
        for name, value in os.environ.items()
        if not _UNRELATED.fullmatch(name)
    }
    return {
        "workers": f"{format_amount(local.workers, 'worker')} with {threads}",
        "cluster.local.resources": json.dumps(tags, sort_keys=True),
        "cluster.local.tls": str(local.tls),
        "daskinfer's code": digest_source(),
        "Python": f"{sys.executable} {sys.version}",
        "a library": str({name: _version(name) for name in _LIBRARIES}),
        "the working directory": str(folder),
        "the cores": str(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "Python's path": os.pathsep.join(path for path in sys.path if path not in own),
        "the umask": str(_umask()),
        "the priority (nice)": str(os.nice(0)),
        "the limits (ulimit)": str(limits),
        **variables,
    }


def compare_circumstances(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """Return the names of what differs.

    Examples
    --------
    >>> compare_circumstances({"workers": "2", "Python": "3.11"}, {"workers": "4", "Python": "3.11"})
    ['workers']
    """
    return [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]


def ask(request: Literal["status", "stop", "stop now"]) -> BackgroundReply | None:
    """Ask the background cluster for something other than itself; None where there is none.

    Parameters
    ----------
    request
        What for.

    Examples
    --------
    >>> ask("status") is None
    True
    """
    with _connection() as connection:
        return None if connection is None else _exchange(connection, BackgroundRequest(ask=request), LOOK_SECONDS)


def background_status() -> BackgroundStatus | None:
    """Return what the background cluster does; None where there is none.

    Examples
    --------
    >>> background_status() is None
    True
    """
    reply = ask("status")
    return None if reply is None else reply.status


def is_kept() -> bool:
    """Whether a process keeps a background cluster, or has not ended since.

    Examples
    --------
    >>> is_kept()
    False
    """
    path = socket_path()
    if path is None or not path.with_suffix(".lock").exists():
        return False
    with os.fdopen(open_private(path.with_suffix(".lock")), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def borrow_cluster(local: LocalCluster, tell: Callable[[str], None]) -> Iterator[BackgroundOffer | None]:
    """Take the cluster that waits in the background, for as long as the context lasts.

    Parameters
    ----------
    local
        Workers that are wanted.
    tell
        Called with a line where one waits that cannot be used.

    Yields
    ------
    BackgroundOffer
        How to reach it; None where none waits, or another one than is wanted.

    Examples
    --------
    >>> with borrow_cluster(LocalCluster(), print) as offer:
    ...     offer is None
    True
    """
    with _connection() as connection:
        reply = None
        if connection is not None:
            request = BackgroundRequest(ask="take", circumstances=describe_circumstances(local))
            reply = _exchange(connection, request, ANSWER_SECONDS)
        if reply is not None and reply.refused:
            tell(f"the background cluster is not used: {reply.refused}")
        yield None if reply is None else reply.offer


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return process and user at the other end of a Unix socket; -1 where the system does not tell.

    Examples
    --------
    >>> one, other = socket.socketpair()
    >>> peer_of(one) == (os.getpid(), os.getuid())
    True
    >>> one.close(), other.close()
    (None, None)
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return -1, -1
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


@contextmanager
def _connection() -> Iterator[socket.socket | None]:
    path = socket_path()
    if path is None or not hasattr(socket, "AF_UNIX"):
        yield None
        return
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LOOK_SECONDS)
        try:
            connection.connect(str(path))
        except OSError:
            yield None
            return
        yield connection if peer_of(connection)[1] in (-1, os.getuid()) else None


def _exchange(connection: socket.socket, request: BackgroundRequest, seconds: float) -> BackgroundReply | None:
    connection.settimeout(seconds)
    try:
        connection.sendall(request.model_dump_json().encode() + b"\n")
        with connection.makefile("rb") as stream:
            return BackgroundReply.model_validate_json(stream.readline(_LONGEST))
    except TimeoutError:
        return BackgroundReply(refused=f"its process does not answer within {seconds:.0f} s")
    except (OSError, ValidationError):
        return None  # it ends in this moment


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _umask() -> int:
    # There is no way to ask for it without setting it.
    found = os.umask(0o077)
    os.umask(found)
    return found
