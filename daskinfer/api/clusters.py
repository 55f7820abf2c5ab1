"""The background cluster of this machine: workers that have started before a run needs them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from daskinfer.errors import JobFailed, UsageError
from daskinfer.runtime.cluster.background.requests import ask, background_status, is_kept, socket_path
from daskinfer.spec.background import BackgroundStatus
from daskinfer.spec.recipe.schema import LocalCluster

START_SECONDS = 180.0
_LOOK_SECONDS = 0.05


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
    place, began = socket_path(make=True), time.monotonic()
    if place is None:
        raise JobFailed("no folder for temporary files is this user's own", hint="Set TMPDIR or XDG_RUNTIME_DIR.")
    log = place.with_suffix(".log")
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "daskinfer.runtime.cluster.background.server"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,  # a Ctrl-C in this terminal is not meant for it
        )
    wanted = {"local": (local or LocalCluster()).model_dump(), "idle_minutes": idle_minutes}
    assert server.stdin is not None
    with server.stdin as stream:
        stream.write(json.dumps(wanted).encode() + b"\n")
    while True:
        found = background_status()
        if found is not None and found.state != "starting":
            server.returncode = 0  # it outlives this process, and nobody waits for it
            return found
        if server.poll() is not None or time.monotonic() - began > START_SECONDS:
            server.kill()
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise JobFailed(f"the background cluster did not start: {last[0]}", hint=f"Look at {log}.")
        if watch is not None:
            watch(time.monotonic() - began, "starting workers")
        time.sleep(_LOOK_SECONDS)


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
    if reply.refused:
        raise UsageError(f"the background cluster is in use: {reply.refused}", hint="Wait for it, or add --now.")
    while is_kept():
        if watch is not None:
            watch(time.monotonic() - began, "stopping workers")
        time.sleep(_LOOK_SECONDS)
    return True


def cluster_status() -> BackgroundStatus | None:
    """Return what the background cluster does; None where there is none.

    Examples
    --------
    >>> cluster_status() is None
    True
    """
    return background_status()
