"""What daskinfer relies on in the installed distributed beyond its documented interface, one test for each such part.

They fail with a sentence that says what changed and which module relies on it. Nothing but `daskinfer/runtime/cluster/`
relies on any of it, which the last test holds. What it relies on in Dask's processes is in `test_dask_processes.py`.
"""

from __future__ import annotations

import ast
import asyncio
import pickle
import re
import threading
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dask.utils import key_split
from distributed import Client, Scheduler, Security, SpecCluster, Worker
from packaging.version import Version

from daskinfer.runtime.cluster import (
    connection,
    local_cluster,
    scheduler_state,
)
from daskinfer.runtime.cluster.resource_tags import close_tags, grant_tags, verify_restrictions
from daskinfer.runtime.cluster.scheduler_check import confirm_scheduler
from daskinfer.runtime.cluster.scheduler_state import identify_workers, list_assigned_tasks, look_at_workers
from daskinfer.runtime.cluster.scheduler_topics import hear_topic, hear_workers
from daskinfer.runtime.cluster.task_submission import make_expression, submit_tasks
from daskinfer.runtime.cluster.worker_calls import ask_workers, call_workers
from tests.support.dask_internals import (
    NEWEST,
    OLDEST,
    TAG,
    cluster_of_threads,
    make_graph,
    on_scheduler,
    relies_on,
    state_of,
    wait_until,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with cluster_of_threads() as client:
        yield client


@pytest.fixture
def workers(client: Client) -> list[str]:
    return sorted(identify_workers(client))


# The versions


def test_the_tested_versions_are_those_that_are_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for name in ("dask", "distributed"):
        (asked,) = [line for line in project["dependencies"] if re.match(rf"{name}\W", line)]
        assert Version(asked.removeprefix(f"{name}>=")) == Version(OLDEST), f"{asked}, yet tested from {OLDEST}"
        assert Version(pinned[name]) == Version(NEWEST), f"constraints.txt has another {name} than was tested: {NEWEST}"


# Tasks


@relies_on("Client.get takes an LLGExpr as it is, and dask.annotate(resources=FUNCTION of a key)", "task_submission")
def test_tasks_arrive_with_their_restrictions_and_priority(client: Client, workers: list[str]) -> None:
    graph = make_graph("submitted", abs, -1)
    one, other = (pickle.loads(pickle.dumps(make_expression(graph))) for _ in range(2))
    assert one.__dask_graph__().keys() == graph.tasks.keys() and one._name != other._name
    (key,) = graph.wanted
    (future,) = submit_tasks(client, graph, priority=7, workers=workers[:1])
    verify_restrictions(client, graph.resources, graph.wanted)

    def read(scheduler: Scheduler) -> Any:
        task = scheduler.tasks[key]
        return task.state, task.worker_restrictions, task.loose_restrictions, task.priority[0]

    assert on_scheduler(client, read) == ("no-worker", {workers[0]}, False, -7)
    future.release()


@relies_on("Scheduler.tasks by key, and TaskState.run_spec and resource_restrictions", "resource_tags")
def test_a_value_without_a_task_has_nothing_to_run(client: Client) -> None:
    future = client.scatter(1, hash=False)

    def read(scheduler: Scheduler) -> Any:
        return scheduler.tasks[future.key].run_spec, scheduler.tasks[future.key].resource_restrictions

    assert on_scheduler(client, read) == (None, None)


@relies_on(
    "Worker.set_resources, Scheduler.running, bulk_schedule_unrunnable_after_adding_worker and transitions",
    "resource_tags",
)
def test_a_tag_that_is_granted_wakes_what_waits(client: Client, workers: list[str]) -> None:
    graph = make_graph("waiting", abs, -2)
    (future,) = submit_tasks(client, graph, priority=0)
    wait_until(lambda: state_of(client, graph.wanted[0]) == "no-worker")
    grant_tags(client, workers[1], {TAG: 1})
    assert future.result(timeout=120) == 2
    assert on_scheduler(client, lambda scheduler: [each.address for each in scheduler.tasks[future.key].who_has]) == [
        workers[1]
    ]
    grant_tags(client, workers[1], {TAG: 0})
    future.release()


@relies_on(
    "WorkerState.resources, processing, has_what and Scheduler.resources; a tag set to 0 there gets nothing new",
    "resource_tags",
)
def test_a_closed_tag_gets_nothing_new(client: Client, workers: list[str]) -> None:
    grant_tags(client, workers[0], {TAG: 1})
    go = threading.Event()
    _EVENTS["closed"] = go
    (running,) = submit_tasks(client, make_graph("running", _wait_for, "closed"), priority=0)
    wait_until(lambda: state_of(client, running.key) == "processing")
    assert close_tags(client, [(workers[0], [TAG], False)]) == [False]
    (later,) = submit_tasks(client, make_graph("later", abs, -1), priority=0)
    wait_until(lambda: state_of(client, later.key) == "no-worker")
    go.set()
    assert running.result(timeout=120) == "closed"
    assert close_tags(client, [(workers[0], [TAG], False), (workers[0], [TAG], True)]) == [True, False]
    for future in (running, later):
        future.release()
    grant_tags(client, workers[0], {TAG: 0})


_EVENTS: dict[str, threading.Event] = {}


def _wait_for(name: str) -> str:
    assert _EVENTS[name].wait(120)
    return name


# What the scheduler knows


@relies_on("Client.scheduler.identity(n_workers=-1) and its nthreads, memory_limit, resources and name", "connection")
def test_the_scheduler_says_what_its_workers_are(client: Client, workers: list[str]) -> None:
    shapes = connection.worker_shapes(client)
    assert [(shape.threads, shape.memory) for shape in shapes] == [(1, 0)] * 2
    assert [shape.resources["GPU"] for shape in shapes] == [1.0] * 2
    assert sorted(shape.name for shape in shapes) == ["0", "1"]


@relies_on(
    "WorkerState.last_seen, status, metrics['memory'], memory_limit, resources; heartbeat_interval", "scheduler_state"
)
def test_the_scheduler_says_how_its_workers_are(client: Client, workers: list[str]) -> None:
    look = look_at_workers(client, {"GPU": 1})
    assert sorted(each.worker for each in look.sightings) == workers
    assert all(abs(look.at - each.last_seen) < 60 and not each.paused for each in look.sightings)
    assert all(each.used > 10**6 and each.limit == 0 for each in look.sightings)
    assert look.interval == 0.5
    assert look_at_workers(client, {"other": 1}).sightings == []


@relies_on("WorkerState.processing and executing, TaskState.dependencies and who_has", "scheduler_state")
def test_the_scheduler_says_what_its_workers_compute(client: Client, workers: list[str]) -> None:
    _EVENTS["computing"] = threading.Event()
    graph = make_graph("computing", _wait_for, "computing", tag="GPU")
    (future,) = submit_tasks(client, graph, priority=0, workers=workers[:1])
    (found,) = wait_until(lambda: [each for each in list_assigned_tasks(client, "job") if each[2] is not None])
    assert found[:2] == (future.key, workers[0]) and found[3] == frozenset()
    _EVENTS["computing"].set()
    assert future.result(timeout=120) == "computing"

    def holds(scheduler: Scheduler) -> Any:
        needs = SimpleNamespace(dependencies={scheduler.tasks[future.key]})
        return [scheduler_state._find_holders(needs, scheduler.workers[worker]) for worker in workers]

    assert on_scheduler(client, holds) == [frozenset(), frozenset({workers[0]})]
    assert on_scheduler(client, lambda scheduler: scheduler.tasks[future.key].dependencies) == set()
    future.release()


@relies_on("dask.utils.key_split remembers its last keys in a cache that can be cleared", "scheduler_state")
def test_short_names_of_keys_can_be_forgotten(client: Client) -> None:
    for number in range(10_001):
        key_split(("job", number))
    look_at_workers(client, {})
    assert key_split.cache_info().currsize < 10_000


@relies_on("topic 'all' has 'add-worker', and 'remove-worker' with 'worker' and 'processing-tasks'", "scheduler_topics")
def test_workers_that_come_and_go_are_told_of(client: Client) -> None:
    came: list[str] = []
    went: list[tuple[str, Any]] = []
    with hear_workers(client, came.append, lambda worker, keys: went.append((worker, keys))):
        client.cluster.scale(3)
        wait_until(lambda: came)
        _EVENTS["going"] = threading.Event()
        graph = make_graph("going", _wait_for, "going", tag="GPU")
        (future,) = submit_tasks(client, graph, priority=0, workers=came[:1])
        wait_until(lambda: state_of(client, future.key) == "processing")
        client.run_on_scheduler(_remove_worker, came[0])
        wait_until(lambda: went)
        _EVENTS["going"].set()
    assert went[0] == (came[0], [future.key])
    future.release()
    client.cluster.scale(2)
    wait_until(lambda: len(identify_workers(client)) == 2)


async def _remove_worker(worker: str, dask_scheduler: Scheduler) -> None:
    await dask_scheduler.remove_worker(worker, stimulus_id="test", expected=True, close=True)


@relies_on(
    "Worker.log_event(topic, message) reaches those who subscribed; address and local_directory", "process_setup"
)
def test_a_worker_can_tell_its_drivers_something(client: Client, workers: list[str]) -> None:
    heard: list[Any] = []

    def send(dask_worker: Worker) -> str:
        dask_worker.log_event("daskinfer-test", {"from": dask_worker.address})
        return str(dask_worker.local_directory)

    with hear_topic(client, "daskinfer-test", heard.append):
        # What is sent before the scheduler knows that somebody listens is lost.
        wait_until(lambda: all(client.run(send).values()) and {each["from"] for each in heard} == {*workers})


# Calls


@relies_on("Client.scheduler_comm is the connection, and is another one, or none, when that is gone", "connection")
def test_a_client_shows_its_connection(client: Client) -> None:
    with Client(client.scheduler.address, set_as_default=False) as other:
        before = connection.current_connection(other)
        assert before is not None and connection.is_connected(other, before)
        assert not connection.is_connected(other, object())
    assert not connection.is_connected(other, before)


@relies_on("what is sent over a connection that is closed raises CommClosedError", "connection")
def test_a_closed_connection_says_so(client: Client) -> None:
    with Client(client.scheduler.address, set_as_default=False) as other:
        kept: Any = connection.current_connection(other)
    with pytest.raises(OSError) as caught:
        kept.send({"op": "heartbeat-client"})
    assert connection.says_closed(caught.value)


@relies_on(
    "Client.run(..., callback_timeout=SECONDS), with a thread that waits and from within its event loop", "worker_calls"
)
def test_calls_of_workers_end_in_time(client: Client, workers: list[str]) -> None:
    with pytest.raises(TimeoutError):
        call_workers(client, workers[:1], 0.05, _sleep, 1.0)
    assert call_workers(client, workers[:1], 120, _sleep, 0) == {workers[0]: 0}
    found = ask_workers(client, 1.5, _sleep, {workers[0]: 0.0, workers[1]: 3.0, "inproc://nobody/1/1": 0})
    assert found == {workers[0]: 0.0}
    with pytest.raises(TimeoutError):
        client.run_on_scheduler(_sleep, 1.0, callback_timeout=0.05)


async def _sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@relies_on(
    "rpc(ADDRESS, timeout=, deserialize=).identity(), Security().get_connection_args('client')", "scheduler_check"
)
def test_a_scheduler_says_that_it_is_one() -> None:
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False}
    scheduler = {"cls": local_cluster.QuietScheduler, "options": options}
    with SpecCluster(scheduler=scheduler, silence_logs=50) as cluster:
        confirm_scheduler(cluster.scheduler_address)
    assert {"ssl_context", "require_encryption"} <= Security().get_connection_args("client").keys()


# Nobody else

PUBLIC = {
    "dask.sizeof": {"sizeof"},
    "dask.system": {"cpu_count"},
    "dask.task_spec": {"List", "Task", "TaskRef"},
    "distributed": {"Client", "Future"},
}
"""What may be imported outside of `runtime/cluster`: Dask's documented interface."""
INTERNAL = {
    "dask_scheduler",
    "dask_worker",
    "run_on_scheduler",
    "scheduler_comm",
    "scheduler_info",
    "stream_comms",
    "subscribe_topic",
    "unsubscribe_topic",
    "callback_timeout",
    "register_plugin",
}
"""Names by which the scheduler's and the workers' own state is reached."""
OF_CLIENTS = {"scheduler", "sync", "run", "get"}
"""What a client has that only `runtime/cluster` uses: its connections, and calls of which the effect is not documented."""
_MENTIONED = re.compile("|".join([r"\bdask\b", "distributed", "client", *INTERNAL]))


def find_internals(path: Path) -> Iterator[str]:
    text = path.read_text()
    if not _MENTIONED.search(text):
        return
    for node in ast.walk(ast.parse(text)):
        found: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            found = [each.name for each in node.names if each.name.partition(".")[0] in ("dask", "distributed")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("dask", "distributed"):
            allowed = PUBLIC.get(str(node.module), set())
            found = [f"{node.module}.{each.name}" for each in node.names if each.name not in allowed]
        elif isinstance(node, ast.Attribute | ast.arg | ast.keyword | ast.Name):
            name = next(getattr(node, field) for field in ("attr", "arg", "id") if hasattr(node, field))
            found = [name] if name in INTERNAL else []
            # client._something, client.scheduler: its connections and futures
            if isinstance(node, ast.Attribute) and (name in OF_CLIENTS or name.startswith("_")):
                owner = str(getattr(node.value, "attr", getattr(node.value, "id", "")))
                found += [name] if owner.endswith("client") else []
        yield from (f"{path.relative_to(ROOT)}:{line}: {each}" for each in found)


def test_what_others_import_is_there() -> None:
    for module, names in PUBLIC.items():
        assert [name for name in names if not hasattr(import_module(module), name)] == [], module


def test_nobody_else_reaches_into_dask() -> None:
    cluster = ROOT / "daskinfer/runtime/cluster"
    homes = [ROOT / name for name in ("daskinfer", "graphs", "storage")]
    paths = {path for home in homes for path in home.rglob("*.py") if not path.is_relative_to(cluster)}
    found = [each for path in sorted(paths) for each in find_internals(path)]
    assert found == [], "only daskinfer/runtime/cluster/ reaches into Dask: put a small function there"
