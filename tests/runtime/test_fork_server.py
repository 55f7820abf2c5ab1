"""The fork server: it starts before the driver's own imports, and ends with the driver."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from daskinfer.runtime.cluster.fork_server import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="nothing is forked here")

_SCRIPT = """
import os, sys
from multiprocessing import forkserver
from daskinfer.runtime.cluster.fork_server import start_imports
from daskinfer.spec.recipe.schema import Cluster, LocalCluster
before = dict(os.environ)
start_imports(Cluster(local=LocalCluster(threads=3)))
assert os.environ == before
assert not {"torch", "distributed", "dask"} & set(sys.modules)
print(forkserver._forkserver._forkserver_pid, flush=True)
"""


def test_it_starts_without_dask_and_ends_with_whoever_started_it_even_while_it_imports() -> None:
    script = _SCRIPT + "sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        server = psutil.Process(int(process.stdout.readline()))
        deadline = time.monotonic() + 120
        while server.environ().get("OMP_NUM_THREADS") != "3":  # before it has replaced its starter's program
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.communicate("\n")
    assert process.returncode == 0
    server.wait(120)


def test_a_fork_of_the_driver_leaves_it_running() -> None:
    script = _SCRIPT + (
        "import atexit, time\n"
        "if not os.fork():\n"
        "    atexit._run_exitfuncs(); os._exit(0)\n"
        "os.wait(); print(os.path.exists(f'/proc/{forkserver._forkserver._forkserver_pid}'))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.split()[-1] == "True"
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(told.split()[0])).wait(120)
