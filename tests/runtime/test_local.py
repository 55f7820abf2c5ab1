"""The cluster that a job starts by itself: closed to everybody else on the machine."""

from __future__ import annotations

import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, Status
from distributed.security import Security

from daskinfer.runtime.cluster.connection import open_cluster
from daskinfer.runtime.cluster.local_cluster import _make_cluster, start_workers
from daskinfer.runtime.cluster.security import make_security, private_folder
from daskinfer.spec.recipe.schema import Cluster, LocalCluster


@pytest.fixture(scope="module")
def before() -> frozenset[str]:
    """What other tests of this process have listening."""
    return frozenset(listening(psutil.Process()))


@pytest.fixture(scope="module")
def local(before: frozenset[str]) -> Iterator[Client]:
    with open_cluster(Cluster(local=LocalCluster(workers=1))) as (client, _):
        yield client


def listening(process: psutil.Process) -> list[str]:
    """Return HOST:PORT of every listening socket of a process and its children."""
    return [
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def refused(address: str, security: Security | None) -> bool:
    protocol = "tcp" if security is None else "tls"
    try:
        Client(f"{protocol}://{address}", security=security, timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.slow
def test_nobody_else_gets_in(local: Client, before: frozenset[str]) -> None:
    """Neither in plain, nor with another certificate of the same name; and there is no page to look at."""
    found = set(listening(psutil.Process())) - before
    # Scheduler, nanny and worker.
    assert len(found) == 3
    assert all(address.startswith("127.0.0.1:") for address in found)
    assert [address for address in found if not (refused(address, None) and refused(address, make_security()))] == []


def test_its_key_is_nowhere_to_be_read(local: Client) -> None:
    key = local.security.tls_client_key
    assert "PRIVATE KEY" in key
    body = key.splitlines()[1]
    for process in psutil.Process().children(recursive=True):
        assert body not in " ".join([*process.cmdline(), *process.environ().values()])
    folder = Path(dask.config.get("temporary-directory"))
    assert folder.name.startswith("daskinfer-")
    assert not any(body in path.read_text(errors="ignore") for path in folder.rglob("*") if path.is_file())


def test_what_forks_its_workers_listens_to_nobody_else(local: Client) -> None:
    address = Path(forkserver._forkserver._forkserver_address)  # type: ignore[attr-defined]
    assert stat.S_IMODE(address.stat().st_mode) == 0o600
    assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700


def test_a_key_needs_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    security = make_security()
    for role in ("client", "scheduler", "worker"):
        context = security.get_connection_args(role)["ssl_context"]
        assert context.verify_mode == ssl.CERT_REQUIRED


def test_the_folder_of_workers_is_the_users_own(tmp_path: Path) -> None:
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        first = Path(private_folder())
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        assert Path(private_folder()) == first
        first.chmod(0o777)
        second = Path(private_folder())
        assert second != first
        assert stat.S_IMODE(second.stat().st_mode) == 0o700
        first.rmdir()
        first.symlink_to("/tmp", target_is_directory=True)
        assert Path(private_folder()) != first


@pytest.mark.slow
@pytest.mark.late
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """A worker that ran it again would try to start workers of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "from daskinfer.runtime.cluster.connection import open_cluster\n"
        "from daskinfer.spec.recipe.schema import Cluster, LocalCluster\n"
        "print('begun', flush=True)\n"
        "with open_cluster(Cluster(local=LocalCluster(workers=1))) as (client, _):\n"
        "    print(client.submit(sum, [1, 2]).result(), flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begun\n3\n", "")


@pytest.mark.parametrize(("tls", "protocol"), [(True, "tls://"), (False, "tcp://")])
def test_encryption_is_the_default_and_can_be_left_out(
    tls: bool, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LocalCluster().tls
    made: list[Any] = []
    monkeypatch.setattr("daskinfer.runtime.cluster.local_cluster.SpecCluster", lambda **options: made.append(options))
    _make_cluster(LocalCluster(tls=tls))
    (options,) = made
    for each in (options["scheduler"], *options["workers"].values()):
        assert (each["options"]["protocol"], each["options"]["host"]) == (protocol, "127.0.0.1")
        assert (each["options"]["security"] is None) != tls


def test_ctrl_c_while_workers_start_stops_them_in_good_order(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    told: list[str] = []

    class Made:
        scheduler = SimpleNamespace(status=Status.running)

        def __enter__(self) -> None:
            steps.append("made")

        def __exit__(self, *_: object) -> None:
            steps.append("stopped")

    def make(_: LocalCluster) -> Made:
        # As it comes to a thread that does not block it. Dask waits meanwhile, and no handler of Python's runs.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)
        deadline = time.monotonic() + 120
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        steps.append("whole")
        return Made()

    monkeypatch.setattr("daskinfer.runtime.cluster.local_cluster._make_cluster", make)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), start_workers(LocalCluster(), told.append):
        steps.append("used")
    assert steps == ["whole", "made", "stopped"]
    assert told == ["interrupted: stopping as soon as the local workers have started"]
    assert signal.getsignal(signal.SIGINT) is before
