"""Commands that are forked from a process which has imported the program, as a test starts dozens of them.

A command takes seconds to import what it needs, and a moment to do what a test asks of it. A forked one runs the same code,
in a process, session, folder and environment of its own. Tests of how the command starts, and those that kill it, start one
of their own: `daskinfer` in conftest.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

_MOST = 1 << 20
# Libraries read these where they are imported, which the server has done long ago.
_EARLY = ("DASK_", "FSSPEC_", "LD_", "MKL_", "OMP_", "PYTHON", "TOKENIZERS_")


class CommandServer:
    """A process that forks commands."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.e2e.commandserver", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2], pass_fds=[theirs.fileno()])
        self._socket = ours
        self._early = _take_early(os.environ)

    def close(self) -> None:
        """End the server; commands that still run go on."""
        self._socket.close()
        self._process.wait(timeout=120)

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Whether a forked command behaves in an environment as a new process would."""
        return _take_early(env) == self._early

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], seconds: float) -> tuple[int, str, str]:
        """Run a command; return its exit code, which is -n where signal n ended it, and what it wrote to stdout and stderr.

        Raises
        ------
        TimeoutError
            It took longer than that, and was killed.
        """
        asked = json.dumps([list(words), str(cwd), dict(env)]).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with TemporaryFile() as out, TemporaryFile() as err, ours:
            with theirs:
                socket.send_fds(self._socket, [asked], [out.fileno(), err.fileno(), theirs.fileno()])
            ours.settimeout(seconds)
            pid = int(ours.recv(64))
            try:
                code = int(ours.recv(64))
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                raise
            out.seek(0)
            err.seek(0)
            return code, out.read().decode(), err.read().decode()


def _take_early(env: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if key.startswith(_EARLY) and key != "PYTHONPATH"}


def _serve(commands: socket.socket) -> bool:
    """Fork commands as they are asked for; return True in each of them, and False in the server, at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system then buries them
    while True:
        asked, fds, _, _ = socket.recv_fds(commands, _MOST, 3)
        if not asked:
            return False
        if os.fork() == 0:
            commands.close()
            _attend(asked, *fds)
            return True
        for fd in fds:
            os.close(fd)


def _attend(asked: bytes, out: int, err: int, answer: int) -> None:
    """Fork the command, wait for it and say how it ended; in the command itself, return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    command = os.fork()
    if command == 0:
        os.close(answer)
        _become(asked, out, err)
        return
    os.write(answer, str(command).encode())
    _, status = os.waitpid(command, 0)
    os.write(answer, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(asked: bytes, out: int, err: int) -> None:
    words, cwd, env = json.loads(asked)
    os.setsid()
    for fd, stream in ((out, 1), (err, 2)):
        os.dup2(fd, stream)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["daskinfer", *words]


if __name__ == "__main__":
    import daskinfer.api
    import daskinfer.runtime.cluster.preload  # noqa: F401
    from daskinfer.cli import main

    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        main()  # and the end of the process is Python's own
