"""The process that local workers are forked from: started at once, for what it imports takes seconds.

Nothing of Dask is imported here, so that a command can start it before it imports what it needs itself.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util

from daskinfer.runtime.cluster.background.requests import background_status
from daskinfer.spec.recipe import schema as recipes

_IMPORTED = "daskinfer.runtime.cluster.preload"
# A fork of this process has the same fork server, and no right to end it.
_starters: set[int] = set()


def can_fork() -> bool:
    """Whether forking is safe here: macOS's own libraries do not survive it.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch("sys.platform", "darwin"):
    ...     can_fork()
    False
    """
    return sys.platform == "linux"


def choose_imports() -> None:
    """Name what a fork server imports that is started from now on.

    Examples
    --------
    >>> choose_imports()
    """
    multiprocessing.set_forkserver_preload([_IMPORTED])
    # Python 3.11.0 lets the fork server listen in a namespace that has no owner; a socket in a folder of the user's own has.
    util.abstract_sockets_supported = False  # type: ignore[misc]


def start_imports(cluster: recipes.Cluster) -> None:
    """Let what a local cluster's workers need be imported from now on, while the driver does other things.

    Parameters
    ----------
    cluster
        Which one; the workers of others, and those in the background, have imported it.

    Examples
    --------
    >>> start_imports(recipes.Cluster(address="tcp://10.0.0.7:8786"))
    """
    if cluster.address is None and background_status() is None:
        begin_imports(cluster.workers)


def begin_imports(local: recipes.LocalCluster) -> None:
    """Start the fork server, unless it runs already.

    Parameters
    ----------
    local
        The workers that will be forked from it.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch("sys.platform", "darwin"):
    ...     begin_imports(recipes.LocalCluster())  # where forking is not safe, workers import it themselves
    """
    if not can_fork():
        return
    choose_imports()
    with _variables(worker_environment(local)), block_interrupts():
        forkserver.ensure_running()
    _starters.add(os.getpid())
    atexit.unregister(stop_imports)
    atexit.register(stop_imports)


def stop_imports() -> None:
    """End the fork server of this process, as its end does: while it imports, it does not notice that it is alone.

    Examples
    --------
    >>> stop_imports()  # none was started
    """
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None and os.getpid() in _starters:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def worker_environment(local: recipes.LocalCluster) -> dict[str, str]:
    """Return the variables of worker processes, without the defaults that slow inference.

    Examples
    --------
    >>> worker_environment(recipes.LocalCluster(threads=2))["OMP_NUM_THREADS"]
    '2'
    """
    threads = str(local.threads)
    return {
        # Freed activations go back to the kernel and are faulted in again under the nanny's own setting, which costs a
        # quarter of CPU inference.
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }


@contextmanager
def block_interrupts() -> Iterator[None]:
    """Block Ctrl-C in every process and thread that is started in here.

    In a terminal it reaches every process of the group, and the driver is to stop the workers in good order. Threads and
    processes inherit what is blocked here. The tracker is started first, for its start would lift the block again.

    Examples
    --------
    >>> with block_interrupts():
    ...     signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    True
    """
    resource_tracker.ensure_running()
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


@contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for what is started in here."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
