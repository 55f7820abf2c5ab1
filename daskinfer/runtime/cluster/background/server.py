"""The process that keeps a local cluster in the background, and hands a fresh one to each run that asks."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from distributed import SpecCluster

from daskinfer.runtime.cluster.background.requests import (
    ANSWER_SECONDS,
    TAKEN,
    compare_circumstances,
    describe_circumstances,
    peer_of,
)
from daskinfer.runtime.cluster.fork_server import begin_imports
from daskinfer.runtime.cluster.local_cluster import start_workers
from daskinfer.runtime.cluster.private_folder import open_private
from daskinfer.spec.background import BackgroundOffer, BackgroundReply, BackgroundRequest, BackgroundStatus
from daskinfer.spec.recipe import schema as recipes

State = Literal["starting", "ready", "in use", "stopping"]
_LONGEST = 1 << 20  # bytes of a message


class BackgroundServer:
    """Keeps one cluster ready, and makes another one whenever a run has used it.

    Parameters
    ----------
    local
        Its workers.
    idle_minutes
        How long it waits for a run before it ends.
    """

    def __init__(self, local: recipes.LocalCluster, idle_minutes: float) -> None:
        self._local = local
        self._idle_minutes = idle_minutes
        self._circumstances = describe_circumstances(local)
        self._changed = threading.Condition()
        self._state: State = "starting"
        self._since = time.monotonic()
        self._offer: BackgroundOffer | None = None
        self._runs = self._user = 0

    def serve(self, listener: socket.socket) -> None:
        """Serve until somebody stops it, or nobody comes."""
        threading.Thread(target=self._accept, args=(listener,), name="background-accept", daemon=True).start()
        while not self._is_stopping():
            with start_workers(self._local) as workers:
                self._offer = _describe(workers)
                with self._changed:
                    if not self._is_stopping():
                        self._enter("ready")
                    if not self._changed.wait_for(lambda: self._state != "ready", self._idle_minutes * 60):
                        self._enter("stopping")
                    self._changed.wait_for(lambda: self._state != "in use")

    def stop(self) -> None:
        """End as soon as what is under way allows."""
        with self._changed:
            self._enter("stopping")

    def _is_stopping(self) -> bool:
        return self._state == "stopping"

    def _enter(self, state: State) -> None:
        """Begin a state; the condition is held."""
        self._state, self._since = state, time.monotonic()
        self._changed.notify_all()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # too many files are open, say
                time.sleep(0.1)
                continue
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        """Answer one request; one for the cluster holds it until its connection ends."""
        with connection, suppress(OSError, ValueError):
            pid, user = peer_of(connection)
            if user not in (-1, os.getuid()):
                return
            connection.settimeout(ANSWER_SECONDS)
            with connection.makefile("rb") as stream:
                request = BackgroundRequest.model_validate_json(stream.readline(_LONGEST))
            reply = self._take(request, pid) if request.ask == "take" else self._obey(request.ask)
            try:
                _send(connection, reply)
                if reply.offer is not None:
                    connection.settimeout(None)
                    while connection.recv(1024):
                        pass
            finally:
                if reply.offer is not None:
                    self._release()

    def _take(self, request: BackgroundRequest, pid: int) -> BackgroundReply:
        if differing := compare_circumstances(request.circumstances, self._circumstances):
            listed = ", ".join(differing[:3]) + (" and more" if len(differing) > 3 else "")
            return BackgroundReply(refused=f"since it was started, these have changed: {listed}")
        with self._changed:
            self._changed.wait_for(lambda: self._state != "starting", 0.8 * ANSWER_SECONDS)
            if self._state != "ready":
                busy = f"process {self._user} uses it" if self._state == "in use" else f"it is {self._state}"
                return BackgroundReply(refused=busy)
            self._user = pid
            self._enter("in use")
            return BackgroundReply(offer=self._offer)

    def _release(self) -> None:
        with self._changed:
            self._runs, self._user = self._runs + 1, 0
            if self._state == "in use":
                self._enter("starting")

    def _obey(self, asked: str) -> BackgroundReply:
        with self._changed:
            if asked == "stop" and self._state == "in use":
                return BackgroundReply(refused=f"process {self._user} uses it", status=self._status())
            if asked in ("stop", "stop now"):
                self._enter("stopping")
            return BackgroundReply(status=self._status())

    def _status(self) -> BackgroundStatus:
        return BackgroundStatus(
            state=self._state,
            pid=os.getpid(),
            local=self._local,
            folder=self._circumstances["the working directory"],
            idle_minutes=self._idle_minutes,
            runs=self._runs,
            seconds=time.monotonic() - self._since,
            user=self._user,
        )


def main() -> None:
    """Keep the cluster that standard input describes; called by `daskinfer cluster start`."""
    wanted = json.loads(sys.stdin.readline())
    local = recipes.LocalCluster.model_validate(wanted["local"])
    path = Path(wanted["socket"])
    with os.fdopen(open_private(path.with_suffix(".lock")), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(TAKEN)
        # Only now: another one that lives writes to the same log.
        log = open_private(path.with_suffix(".log"))
        os.ftruncate(log, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _serve(BackgroundServer(local, wanted["idle_minutes"]), path, local)


def _serve(server: BackgroundServer, path: Path, local: recipes.LocalCluster) -> None:
    path.unlink(missing_ok=True)
    begin_imports(local)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(128)
        signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=server.stop).start())
        try:
            server.serve(listener)
        finally:
            path.unlink(missing_ok=True)


def _describe(workers: SpecCluster) -> BackgroundOffer:
    security = workers.security
    is_closed = security is not None and security.require_encryption
    return BackgroundOffer(
        address=workers.scheduler_address,
        certificate=str(security.tls_ca_file) if is_closed else "",
        key=str(security.tls_client_key) if is_closed else "",
    )


def _send(connection: socket.socket, reply: BackgroundReply) -> None:
    connection.sendall(reply.model_dump_json().encode() + b"\n")


if __name__ == "__main__":
    main()
