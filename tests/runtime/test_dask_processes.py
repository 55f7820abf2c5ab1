"""What daskinfer relies on in the installed distributed to start, restart and leave processes; see `test_dask_internals.py`."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import ssl
import threading
from collections.abc import Iterator
from multiprocessing import spawn
from typing import Any

import dask
import distributed
import pytest
from dask.sizeof import sizeof
from distributed import Client, Nanny, Scheduler, Security, Worker
from distributed.batched import BatchedSend
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.gc import disable_gc_diagnosis, enable_gc_diagnosis
from distributed.nanny import WorkerProcess
from distributed.utils import get_mp_context, silence_logging_cmgr

from daskinfer.runtime.cluster import (
    cleanup,
    connection,
    forking,
    local_cluster,
    process_setup,
    restarts,
    security,
)
from daskinfer.runtime.cluster.resource_tags import grant_tags
from daskinfer.runtime.cluster.scheduler_state import identify_workers
from daskinfer.spec.recipe.schema import LocalCluster as LocalSettings
from tests.support.dask_internals import (
    cluster_of_threads,
    on_scheduler,
    parameters,
    relies_on,
    wait_until,
)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with cluster_of_threads() as client:
        yield client


@pytest.fixture
def workers(client: Client) -> list[str]:
    return sorted(identify_workers(client))


# Restarts


@relies_on(
    "Scheduler.remove_worker(address, stimulus_id, expected, close), worker_send, connection_args, WorkerState.nanny, "
    "and a worker's and a nanny's handlers 'close' and 'kill' with nanny= and reason=",
    "restarts",
)
def test_a_worker_can_be_taken_off(client: Client, workers: list[str]) -> None:
    """What comes of it in processes, with nannies, is tested with those that watch over workers."""
    assert {"stimulus_id", "expected", "close"} <= parameters(Scheduler.remove_worker).keys()
    assert {"nanny", "reason"} <= parameters(Worker.close).keys()
    assert "reason" in parameters(Nanny.kill)

    def read(scheduler: Scheduler) -> bool:
        has_nanny = scheduler.workers[workers[0]].nanny is not None
        return callable(scheduler.worker_send) and isinstance(scheduler.connection_args, dict) and not has_nanny

    assert on_scheduler(client, read)
    handlers = client.run(lambda dask_worker: "close" in dask_worker.stream_handlers, workers=workers[:1])
    assert handlers[workers[0]]
    source = inspect.getsource(Nanny.__init__)
    assert '"kill": self.kill' in source, "a nanny has no handler 'kill'"


@relies_on("Scheduler._ongoing_background_tasks.call_soon(function, *arguments)", "restarts")
def test_the_scheduler_does_things_in_the_background(client: Client) -> None:
    done = threading.Event()

    async def finish() -> None:
        done.set()

    on_scheduler(client, lambda scheduler: scheduler._ongoing_background_tasks.call_soon(finish) or True)
    assert done.wait(120)
    assert "_ongoing_background_tasks" in inspect.getsource(restarts) + inspect.getsource(cleanup)


# What a driver leaves behind


@relies_on("Scheduler.plugins by name, and SchedulerPlugin.remove_client when a client's connection ends", "cleanup")
def test_a_plugin_hears_that_a_client_is_gone(client: Client) -> None:
    assert {"scheduler", "client"} <= parameters(SchedulerPlugin.remove_client).keys()
    with Client(client.scheduler.address, set_as_default=False) as other:
        cleanup.arrive(other)
        name = cleanup.name_of(other.id)
        assert isinstance(on_scheduler(client, lambda scheduler: scheduler.plugins[name]), cleanup.Cleanup)
    wait_until(lambda: not on_scheduler(client, lambda scheduler: name in scheduler.plugins))


@relies_on("Scheduler.broadcast of an operation 'run' with a pickled function and keywords", "cleanup")
def test_the_scheduler_calls_functions_on_workers(client: Client, workers: list[str]) -> None:
    tag = "broadcast/stage-0"
    with Client(client.scheduler.address, set_as_default=False) as other:
        cleanup.arrive(other)
        cleanup.bring(other, workers, "broadcast", "", "broadcast/")
        grant_tags(other, workers[0], {tag: 1})
        cleanup.take_leave(other)
    resources = client.run(lambda dask_worker: dict(dask_worker.state.total_resources))
    assert tag not in resources[workers[0]], "the function did not run on the worker"


@relies_on("Scheduler.resources, WorkerState.resources and used_resources are dictionaries by tag", "cleanup")
def test_the_scheduler_can_forget_a_tag(client: Client, workers: list[str]) -> None:
    tag = "forgotten/stage-0"
    grant_tags(client, workers[0], {tag: 1})

    def read(scheduler: Scheduler) -> list[bool]:
        worker = scheduler.workers[workers[0]]
        return [tag in each for each in (scheduler.resources, worker.resources, worker.used_resources)]

    assert on_scheduler(client, read) == [True] * 3
    on_scheduler(client, lambda scheduler: cleanup.forget_tags(scheduler, "forgotten/"))
    assert on_scheduler(client, read) == [False] * 3
    grant_tags(client, workers[0], {tag: 0})


@relies_on("Worker.state.total_resources, available_resources, and tasks with their resource_restrictions", "cleanup")
def test_a_worker_has_no_room_for_a_tag_that_was_taken(client: Client, workers: list[str]) -> None:
    tag = "taken/stage-0"
    grant_tags(client, workers[0], {tag: 1})

    async def leave(dask_worker: Worker) -> list[Any]:
        state = dask_worker.state
        before = (state.total_resources[tag], state.available_resources[tag])
        await cleanup.leave_worker("taken", "", "taken/", dask_worker)
        after = (tag in state.total_resources, state.available_resources[tag])
        return [before, after, [task.resource_restrictions for task in state.tasks.values()]]

    before, after, _ = client.run(leave, workers=workers[:1])[workers[0]]
    assert (before, after) == ((1, 1), (False, 0.0))


@relies_on("Scheduler.allowed_failures is what a task may lose workers before it fails", "process_setup")
def test_the_scheduler_allows_failures(client: Client) -> None:
    before = on_scheduler(client, lambda scheduler: scheduler.allowed_failures)
    assert before == dask.config.get("distributed.scheduler.allowed-failures")
    client.run_on_scheduler(process_setup._set_up_scheduler)
    assert on_scheduler(client, lambda scheduler: scheduler.allowed_failures) == process_setup.ALLOWED_FAILURES
    assert "self.allowed_failures" in inspect.getsource(Scheduler.remove_worker), "deaths are counted elsewhere"


# Processes


@relies_on("every setting that is changed has this name in Dask's own defaults", "local_cluster")
def test_all_settings_are_known() -> None:
    changed = [*local_cluster._settings(LocalSettings()), *connection._QUIET, *forking.fork_workers()]
    assert [name for name in changed if dask.config.get(name, "absent") == "absent"] == []
    with dask.config.set(connection._QUIET):
        assert BatchedSend(0.1).recent_message_log.maxlen == 20, "connections keep their messages elsewhere"


@relies_on("Scheduler and Worker open their pages in start_http_server", "local_cluster")
def test_pages_are_opened_in_one_place() -> None:
    for process in (Scheduler, Worker):
        assert any("self.start_http_server(" in inspect.getsource(each) for each in _methods(process)), process


def _methods(kind: type) -> list[Any]:
    return [each for each in vars(kind).values() if inspect.isfunction(each)]


@relies_on(
    "a nanny's worker process is called 'Dask Worker process ...' as multiprocessing prepares it", "local_cluster"
)
def test_worker_processes_have_a_name() -> None:
    assert f'name="{local_cluster._WORKER_NAME}' in inspect.getsource(WorkerProcess.start)
    with local_cluster._without_main():
        prepared = spawn.get_preparation_data(f"{local_cluster._WORKER_NAME} (from Nanny)")
    assert not any(name.startswith("init_main") for name in prepared)


@relies_on(
    "get_mp_context makes its choice of what a fork server imports once, and obeys multiprocessing-method", "forking"
)
def test_workers_are_forked_from_what_was_chosen() -> None:
    with dask.config.set(forking.fork_workers() or {"distributed.worker.multiprocessing-method": "spawn"}):
        context = get_mp_context()
        assert context is get_mp_context()
        assert context.get_start_method() == dask.config.get("distributed.worker.multiprocessing-method")
    assert distributed.utils._forkserver_preload_set or not forking.fork_workers()


@relies_on("disable_gc_diagnosis(force=True) ends it whoever asked for it", "process_setup")
def test_collecting_garbage_calls_nobody() -> None:
    enable_gc_diagnosis()
    enable_gc_diagnosis()
    disable_gc_diagnosis(force=True)
    assert not distributed.gc._gc_diagnosis._enabled


@relies_on("silence_logging_cmgr(LEVEL) silences distributed's handlers and gives them back their level", "connection")
def test_distributed_can_be_silenced() -> None:
    handler, logger = logging.StreamHandler(), logging.getLogger("distributed")
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with silence_logging_cmgr(logging.CRITICAL):
            assert handler.level == logging.CRITICAL
        assert handler.level == logging.INFO
    finally:
        logger.removeHandler(handler)


@relies_on("Security._get_tls_context(tls, purpose) makes every context, from tls['cert'] and tls['key']", "security")
def test_keys_need_not_be_files() -> None:
    assert list(parameters(Security._get_tls_context)) == ["self", "tls", "purpose"]
    made = security.make_security()
    for role in ("client", "scheduler", "worker"):
        tls = made.get_tls_config_for_role(role)
        assert "\n" in tls["cert"] and "\n" in tls["key"]
        assert isinstance(made.get_connection_args(role)["ssl_context"], ssl.SSLContext)
    assert isinstance(made.get_listen_args("scheduler")["ssl_context"], ssl.SSLContext)


@relies_on("distributed registers its serialisers of torch lazily, in distributed.protocol.torch", "serialization")
def test_serializers_of_tensors_have_their_place() -> None:
    """That ours replace them is tested with the tensors."""
    assert importlib.util.find_spec("distributed.protocol.torch")
    for registry in (distributed.protocol.dask_serialize, distributed.protocol.dask_deserialize, sizeof):
        assert list(parameters(registry.register_lazy)) == ["toplevel", "func"]
