"""What daskinfer sets up in every process of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from distributed import Client, Scheduler, Worker
from distributed.gc import disable_gc_diagnosis

from daskinfer.graphs.identity import set_identity
from daskinfer.graphs.reporting import set_sender
from daskinfer.knobs import ANSWER_SECONDS
from daskinfer.logs import LogSettings, set_up_logging
from daskinfer.runtime.cluster import admission, cleanup
from daskinfer.runtime.cluster.admission import Admission
from daskinfer.runtime.cluster.scheduler_state import identify_workers
from daskinfer.runtime.cluster.serialization import register_serializers
from daskinfer.runtime.cluster.worker_calls import call_workers

# Every death of a worker is counted against all tasks assigned to it, innocent ones included; the driver counts
# attempts itself.
ALLOWED_FAILURES = 1_000


def set_up_processes(
    client: Client,
    logs: LogSettings | None = None,
    say: Callable[[str], None] = lambda line: None,
    is_shared: bool = False,
) -> Admission:
    """Prepare this process, the scheduler's, and those workers that are there and can be used.

    No plugin does it, for that would keep every worker without daskinfer from starting, whoever it is for.

    Parameters
    ----------
    client
        Connected to the cluster.
    logs
        How its workers log.
    say
        Told of every worker that cannot be used.
    is_shared
        Whether the cluster goes on without this client, and is to be left as it was found.

    Returns
    -------
    Admission
        What prepares the workers that come later.
    """
    register_serializers()
    # It calls Python in the middle of everything, and an interrupt that comes there is ignored.
    disable_gc_diagnosis(force=True)
    admission.describe_scheduler(client)
    if is_shared:
        cleanup.arrive(client)
    client.run_on_scheduler(_set_up_scheduler)
    found = Admission(client, partial(_set_up_workers, client, logs), say)
    found.require(identify_workers(client))
    return found


def _set_up_workers(client: Client, logs: LogSettings | None, workers: list[str]) -> None:
    cleanup.bring(client, workers)
    # One that is gone by now, or frozen, is found out later; one that is slow is set up before it hears of a task.
    with suppress(TimeoutError):
        call_workers(client, workers, ANSWER_SECONDS.get(), _set_up_worker, logs, on_error="ignore")


def _set_up_worker(logs: LogSettings | None, dask_worker: Worker) -> None:
    """Prepare a worker; must be quick, for it runs on the worker's event loop."""
    register_serializers()
    set_identity(dask_worker.address, dask_worker.local_directory)
    set_sender(dask_worker.log_event)
    if logs is not None:
        set_up_logging(logs)


def _set_up_scheduler(dask_scheduler: Scheduler) -> None:
    register_serializers()
    dask_scheduler.allowed_failures = max(dask_scheduler.allowed_failures, ALLOWED_FAILURES)
