"""What daskinfer sets up in every process of a cluster."""

from __future__ import annotations

from contextlib import suppress

from distributed import Client, Scheduler, Worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.gc import disable_gc_diagnosis

from daskinfer.graphs.identity import set_identity
from daskinfer.graphs.reporting import set_sender
from daskinfer.logs import LogSettings, set_up_logging
from daskinfer.runtime.serialization import register_serializers

# Every death of a worker is counted against all tasks assigned to it, innocent ones included; the driver counts
# attempts itself.
ALLOWED_FAILURES = 1_000
_SET_UP_SECONDS = 15.0


class ProcessSetup(WorkerPlugin):
    """Serialisers, sizes and what tasks know of their process, on every worker that is there or comes later."""

    name = "daskinfer-process"

    def __init__(self, logs: LogSettings | None) -> None:
        self._logs = logs

    def setup(self, worker: Worker) -> None:
        """Prepare a worker; must be quick, for it runs on the worker's event loop."""
        register_serializers()
        set_identity(worker.address, worker.local_directory)
        set_sender(worker.log_event)
        if self._logs is not None:
            set_up_logging(self._logs)


def set_up_processes(client: Client, logs: LogSettings | None = None) -> None:
    """Prepare this process, the scheduler's and all workers', now and in future; these log as `logs` says."""
    register_serializers()
    # It calls Python in the middle of everything, and an interrupt that comes there is ignored.
    disable_gc_diagnosis(force=True)
    plugin = ProcessSetup(logs)
    # What `register_plugin` does, but that it would wait for ever for a worker that is frozen. Such a one is set up
    # should it wake, before it takes a task; that it is frozen is found out later.
    with suppress(TimeoutError):
        client.sync(
            client._register_worker_plugin, plugin, plugin.name, idempotent=False, callback_timeout=_SET_UP_SECONDS
        )
    client.run_on_scheduler(_set_up_scheduler)


def _set_up_scheduler(dask_scheduler: Scheduler) -> None:
    register_serializers()
    dask_scheduler.allowed_failures = max(dask_scheduler.allowed_failures, ALLOWED_FAILURES)
