"""The cluster a job runs on: worker processes started here, or a scheduler that is already there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import dask
from distributed import Client
from distributed.comm import CommClosedError
from distributed.utils import silence_logging_cmgr
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from daskinfer.errors import JobFailed
from daskinfer.logs import log_settings
from daskinfer.redaction import reveal
from daskinfer.runtime.cluster.admission import Admission, describe_scheduler
from daskinfer.runtime.cluster.background.requests import borrow_cluster
from daskinfer.runtime.cluster.cleanup import take_leave
from daskinfer.runtime.cluster.device_description import describe_device
from daskinfer.runtime.cluster.fork_server import begin_imports
from daskinfer.runtime.cluster.local_cluster import memory_of_worker, start_workers
from daskinfer.runtime.cluster.process_setup import set_up_processes
from daskinfer.runtime.cluster.scheduler_check import confirm_scheduler
from daskinfer.runtime.cluster.scheduler_state import identify_workers
from daskinfer.runtime.cluster.security import security_of
from daskinfer.spec.plan import DeviceShape, WorkerShape
from daskinfer.spec.recipe import schema as recipes

CONNECT_SECONDS = 10
# Every connection keeps its last 1,000 messages by default, whole graphs among them: memory that grows for an hour.
_QUIET = {"distributed.admin.low-level-log-length": 20}


def find_workers(cluster: recipes.Cluster, say: Callable[[str], None] = lambda line: None) -> list[WorkerShape]:
    """Return the workers that a plan can count on: those of a running cluster, or those that would be started.

    Parameters
    ----------
    cluster
        Which one.
    say
        Called with a line for each worker that is not used.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> with patch(f"{__name__}.describe_device", return_value=make_worker("a").device):
    ...     found = find_workers(recipes.Cluster(local=recipes.LocalCluster(workers=2)))
    >>> [worker.address for worker in found]
    ['local-0', 'local-1']
    """
    if cluster.address is not None:
        with dask.config.set(_QUIET), silence_logging_cmgr(logging.CRITICAL), _connect(cluster.address) as client:
            describe_scheduler(client)
            connected = [shape.address for shape in worker_shapes(client)]
            return measure_workers(client, sorted(Admission(client, say=say).require(connected)))
    local = cluster.workers
    device = describe_device()
    memory = memory_of_worker(local)
    return [
        WorkerShape(
            address=f"local-{index}", threads=local.threads, memory=memory, resources=local.resources, device=device
        )
        for index in range(local.workers)
    ]


@contextmanager
def open_cluster(
    cluster: recipes.Cluster,
    patience: float = 0,
    say: Callable[[str], None] = lambda line: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Client, Admission]]:
    """Start or join a cluster, prepare its processes, and leave it as it was found.

    Parameters
    ----------
    cluster
        Which one.
    patience
        Seconds that a scheduler may take until it answers, beyond those of one try.
    say
        Called with a line for each worker that is not used.
    tell
        Called with a line when Ctrl-C or SIGTERM has to wait until local workers have started.

    Yields
    ------
    tuple
        A client, and what tells which workers can be used.

    Raises
    ------
    JobFailed
        The scheduler cannot be reached, or workers do not start.
    """
    logs = log_settings()
    if cluster.address is not None:
        # Its workers may be anywhere: what they log goes to their own stderr.
        logs = None if logs is None else replace(logs, file=None)
        # Silent as a local cluster is: what goes wrong is told once, by the job.
        with (
            dask.config.set(_QUIET),
            silence_logging_cmgr(logging.CRITICAL),
            _connect_patiently(cluster.address, patience) as client,
        ):
            try:
                yield client, set_up_processes(client, logs, say, is_shared=True)
            finally:
                if client.status == "running":
                    with suppress(OSError):  # the scheduler goes in this moment
                        take_leave(client)
        return
    with dask.config.set(_QUIET), _open_local(cluster.workers, tell) as client:
        yield client, set_up_processes(client, logs, say)


@contextmanager
def _open_local(local: recipes.LocalCluster, tell: Callable[[str], None]) -> Iterator[Client]:
    """Use the cluster that waits in the background, or start one."""
    with borrow_cluster(local, tell) as offer:
        if offer is not None:
            security = security_of(offer.certificate, offer.key) if offer.key else None
            with silence_logging_cmgr(logging.CRITICAL), Client(offer.address, security=security) as client:
                yield client
            return
    begin_imports(local)
    with start_workers(local, tell) as workers, Client(workers) as client:
        yield client


def measure_workers(client: Client, workers: list[str]) -> list[WorkerShape]:
    """Return those of some workers that are connected now, with what they compute on.

    Examples
    --------
    >>> from unittest.mock import Mock, patch
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> client = Mock(run=lambda *_, **__: {"tcp://a:1": make_worker("a").device, "tcp://b:1": OSError("it is gone")})
    >>> shapes = [make_worker("tcp://a:1"), make_worker("tcp://b:1")]
    >>> with patch(f"{__name__}.worker_shapes", return_value=shapes):
    ...     [worker.address for worker in measure_workers(client, ["tcp://a:1", "tcp://b:1"])]
    ['tcp://a:1']
    """
    # One that is gone, or stops answering, is not counted on.
    found: dict[str, DeviceShape | BaseException] = client.run(describe_device, workers=workers, on_error="return")
    return [
        shape.model_copy(update={"device": device})
        for shape in worker_shapes(client)
        if isinstance(device := found.get(shape.address), DeviceShape)
    ]


def current_connection(client: Client) -> object:
    """Return a client's connection to its scheduler; a client that finds its scheduler again has another one.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock(status="running")
    >>> is_connected(client, current_connection(client))
    True
    """
    return client.scheduler_comm


def is_connected(client: Client, connection: object) -> bool:
    """Whether a client still has a connection; if not, all its futures are lost.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> client = Mock(status="running")
    >>> before = current_connection(client)
    >>> client.scheduler_comm = Mock()  # it has found its scheduler again
    >>> is_connected(client, before)
    False
    """
    return client.status == "running" and client.scheduler_comm is connection


def says_closed(error: BaseException) -> bool:
    """Whether an error says that a connection is closed; the client itself may find out later.

    Examples
    --------
    >>> says_closed(CommClosedError("closed")), says_closed(ValueError("no such row"))
    (True, False)
    """
    return isinstance(error, CommClosedError)


def worker_shapes(client: Client) -> list[WorkerShape]:
    """Return the workers that are connected now.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> identity = {"nthreads": 2, "memory_limit": None, "resources": {"GPU": 1}}
    >>> with patch(f"{__name__}.identify_workers", return_value={"tcp://a:1": identity}):
    ...     [(worker.address, worker.threads) for worker in worker_shapes(None)]
    [('tcp://a:1', 2)]
    """
    return [shape_worker(address, worker) for address, worker in identify_workers(client).items()]


def shape_worker(address: str, identity: dict[str, Any]) -> WorkerShape:
    """Make a worker's shape from what the scheduler says of it.

    Examples
    --------
    >>> shape_worker("tcp://a:1", {"nthreads": 2, "memory_limit": None, "resources": {"GPU": 1}}).resources
    {'GPU': 1.0}
    """
    return WorkerShape(
        address=address,
        threads=identity["nthreads"],
        memory=identity["memory_limit"] or 0,
        resources={tag: float(amount) for tag, amount in identity["resources"].items()},
        name=str(identity.get("name", "")),
    )


def _connect(address: str) -> Client:
    confirm_scheduler(reveal(address))
    try:
        return Client(reveal(address), timeout=CONNECT_SECONDS)
    except OSError as error:
        raise JobFailed(
            f"no Dask scheduler answers at {address}: {error}",
            hint="Start it, or correct cluster.address in the recipe.",
        ) from error


def _connect_patiently(address: str, patience: float) -> Client:
    retry = Retrying(
        retry=retry_if_exception_type(JobFailed), stop=stop_after_delay(patience), wait=wait_fixed(1), reraise=True
    )
    client: Client = retry(_connect, address)
    return client
