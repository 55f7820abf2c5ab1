"""The background cluster of this machine: workers that have started before a run needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from daskinfer.errors import DaskinferError, JobFailed, UsageError
from daskinfer.runtime.cluster.background.requests import TAKEN, ask, background_status, is_kept, socket_path
from daskinfer.spec.background import BackgroundReply, BackgroundStatus
from daskinfer.spec.recipe.schema import LocalCluster

START_SECONDS = 180.0
SERVER = "daskinfer.runtime.cluster.background.server"
_LOOK_SECONDS = 0.05
_LONGEST_PATH = 100  # bytes: Linux takes 107 of a socket, macOS 103


def start_cluster(
    local: LocalCluster | None = None,
    *,
    idle_minutes: float = 30.0,
    watch: Callable[[float, str], None] | None = None,
) -> BackgroundStatus:
    """Start the workers of a local cluster in the background, for the runs that follow.

    A run with the same `cluster.local`, working directory, environment and code uses them, one run at a time; each run
    has fresh processes.

    Parameters
    ----------
    local
        The workers; by default those of a recipe that says nothing.
    idle_minutes
        How long they wait for a run before they end.
    watch
        Called with the seconds waited so far, and what is being waited for.

    Returns
    -------
    BackgroundStatus
        Once they are ready.

    Raises
    ------
    UsageError
        Some wait already.
    JobFailed
        They do not start.

    Examples
    --------
    >>> started = start_cluster(LocalCluster(workers=1), idle_minutes=1)
    >>> started.state, stop_cluster()
    ('ready', True)
    """
    if (found := background_status()) is not None:
        raise UsageError(
            f"a background cluster is there already: process {found.pid}, started in {found.folder}",
            hint="Use it, or end it first: daskinfer cluster stop",
        )
    place, began = _make_place(), time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in this terminal is not meant for it
    )
    try:
        wanted = {"local": (local or LocalCluster()).model_dump(), "idle_minutes": idle_minutes, "socket": str(place)}
        assert server.stdin is not None
        with server.stdin as stream:
            stream.write(json.dumps(wanted).encode() + b"\n")
        while (found := background_status()) is None or found.pid != server.pid or found.state == "starting":
            if server.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise _explain(server.poll(), place.with_suffix(".log"))
            if watch is not None:
                watch(time.monotonic() - began, "starting workers")
            time.sleep(_LOOK_SECONDS)
    except BaseException:
        server.terminate()  # interrupted, say: nobody would know of it
        raise
    server.returncode = 0  # it outlives this process, and nobody waits for it
    return found


def stop_cluster(*, now: bool = False, watch: Callable[[float, str], None] | None = None) -> bool:
    """End the background cluster.

    Parameters
    ----------
    now
        Also where a run uses it, which then goes on with workers of its own.
    watch
        Called with the seconds waited so far, and what is being waited for.

    Returns
    -------
    bool
        False where there was none.

    Raises
    ------
    UsageError
        A run uses it.

    Examples
    --------
    >>> stop_cluster()
    False
    """
    reply, began = ask("stop now" if now else "stop"), time.monotonic()
    if reply is None:
        return False
    if reply.refused and reply.status is not None:
        raise UsageError(f"the background cluster is in use: {reply.refused}", hint="Wait for it, or add --now.")
    _require_answer(reply)
    while is_kept():
        if watch is not None:
            watch(time.monotonic() - began, "stopping workers")
        time.sleep(_LOOK_SECONDS)
    return True


def cluster_status() -> BackgroundStatus | None:
    """Return what the background cluster does; None where there is none.

    Raises
    ------
    JobFailed
        Its process does not answer.

    Examples
    --------
    >>> cluster_status() is None
    True
    """
    reply = ask("status")
    if reply is None:
        return None
    _require_answer(reply)
    return reply.status


def _require_answer(reply: BackgroundReply) -> None:
    if reply.status is None:
        raise JobFailed(
            f"a background cluster is there, and {reply.refused or 'its process answers with something else'}",
            hint=f"End the process whose command has {SERVER} in it.",
        )


def _make_place() -> Path:
    """Return where the process is to listen."""
    hint = "Set XDG_RUNTIME_DIR to a folder with a short path that is yours."
    try:
        place = socket_path(make=True)
    except OSError as error:
        raise JobFailed(f"there is no folder for the background cluster's socket: {error}", hint=hint) from error
    if place is None:
        raise JobFailed(
            f"the folder daskinfer-{os.getuid()} where the background cluster's socket would lie is not yours alone",
            hint=f"It is in XDG_RUNTIME_DIR, else with the temporary files: chmod 700 or delete it. {hint}",
        )
    if len(os.fsencode(place)) > _LONGEST_PATH:
        raise JobFailed(f"{place} is too long a path for a socket", hint=hint)
    for name in (place, place.with_suffix(".lock"), place.with_suffix(".log")):
        if not (name.is_socket() if name == place else name.is_file()) and os.path.lexists(name):
            raise JobFailed(f"{name} was put there by somebody else", hint="Delete it.")
    return place


def _explain(code: int | None, log: Path) -> DaskinferError:
    """Return why the process did not start."""
    if code == TAKEN:
        return UsageError("a background cluster is being started already", hint="Look: daskinfer cluster status")
    last = (log.read_text(errors="replace") if log.exists() else "").strip().splitlines()[-1:]
    said = (
        last[0] if last else f"it ended with code {code}" if code is not None else f"not within {START_SECONDS:.0f} s"
    )
    return JobFailed(f"the background cluster did not start: {said}", hint=f"Look at {log}.")
