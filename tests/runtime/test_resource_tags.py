"""Tokens against the installed distributed: what we rely on inside the scheduler still holds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest
from distributed import Client, Future, get_worker
from distributed.worker_state_machine import ComputeTaskEvent, FreeKeysEvent

from daskinfer.errors import JobFailed
from daskinfer.runtime.cluster import resource_tags
from daskinfer.runtime.cluster.cleanup import forget_tags, leave_worker
from daskinfer.runtime.cluster.resource_tags import close_tags, grant_tags, verify_restrictions

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TOKEN = "job-0123456789/stage-0"


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.02)
    return where()


def where() -> str:
    return str(get_worker().address)


@pytest.fixture
def submit(client: Client, addresses: list[str]) -> Iterator[Callable[[str], Future]]:
    """Submit a task that asks for the tag; all tags are taken back afterwards."""
    yield lambda key: client.submit(where, key=key, resources={TOKEN: 1}, pure=False)
    for address in addresses:
        grant_tags(client, address, {TOKEN: 0})


def state_of(client: Client, key: str) -> str | None:
    def read(dask_scheduler: Any) -> str | None:
        return dask_scheduler.tasks[key].state if key in dask_scheduler.tasks else None

    return client.run_on_scheduler(read)  # type: ignore[no-any-return]


def await_state(client: Client, key: str, state: str) -> None:
    deadline = time.monotonic() + 120
    while state_of(client, key) != state:
        assert time.monotonic() < deadline, state_of(client, key)
        time.sleep(0.02)


def test_a_tag_wakes_the_task_that_waits_for_it(
    client: Client, addresses: list[str], submit: Callable[[str], Future]
) -> None:
    waiting = submit("waiting")
    await_state(client, "waiting", "no-worker")
    grant_tags(client, addresses[1], {TOKEN: 1})
    assert waiting.result(timeout=120) == addresses[1]


def test_a_task_that_comes_after_its_driver_has_left_does_not_end_the_worker(
    client: Client, addresses: list[str]
) -> None:
    tag = "gone/stage-0"

    async def leave(dask_worker: Any) -> dict[str, float]:
        await dask_worker.set_resources(**{tag: 1})
        await leave_worker("gone", "", "gone/", dask_worker)
        late = ComputeTaskEvent.dummy("late", resource_restrictions={tag: 1}, stimulus_id="test")
        dask_worker.handle_stimulus(late)
        assert dask_worker.state.tasks["late"].state == "constrained"
        dask_worker.handle_stimulus(FreeKeysEvent(keys=["late"], stimulus_id="test"))
        assert "late" not in dask_worker.state.tasks
        return {**dask_worker.state.available_resources}

    assert tag not in client.run(leave, workers=addresses[:1])[addresses[0]]
    client.run_on_scheduler(lambda dask_scheduler: forget_tags(dask_scheduler, "gone/"))
    assert client.submit(where, workers=addresses[:1], pure=False).result(timeout=120) == addresses[0]


def test_without_the_kick_the_task_would_wait_for_ever(
    client: Client, addresses: list[str], submit: Callable[[str], Future], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = submit("stuck")
    await_state(client, "stuck", "no-worker")
    with monkeypatch.context() as patch:
        patch.setattr(resource_tags, "_kick", lambda dask_scheduler: None)
        grant_tags(client, addresses[0], {TOKEN: 1})
    time.sleep(1)
    assert state_of(client, "stuck") == "no-worker"
    grant_tags(client, addresses[0], {TOKEN: 1})
    assert waiting.result(timeout=120) == addresses[0]


def test_a_tag_taken_back_lets_nothing_new_start(
    client: Client, addresses: list[str], submit: Callable[[str], Future]
) -> None:
    for address in addresses:
        grant_tags(client, address, {TOKEN: 1})
    grant_tags(client, addresses[0], {TOKEN: 0})
    assert {submit(f"moved-{number}").result(timeout=120) for number in range(4)} == {addresses[1]}
    grant_tags(client, addresses[1], {TOKEN: 0})
    waiting = submit("drained")
    await_state(client, "drained", "no-worker")
    grant_tags(client, addresses[0], {TOKEN: 1})
    assert waiting.result(timeout=120) == addresses[0]


def test_a_closed_tag_lets_what_is_assigned_finish_and_nothing_new_begin(
    client: Client, addresses: list[str], submit: Callable[[str], Future], tmp_path: Path
) -> None:
    leaving, staying = addresses
    grant_tags(client, leaving, {TOKEN: 1})
    go = tmp_path / "go"
    # The first one runs; the second is assigned, and waits for its turn. Taking the tag would leave it there for ever.
    assigned = [
        client.submit(wait_for, str(go), key=f"assigned-{number}", resources={TOKEN: 1}, pure=False)
        for number in (0, 1)
    ]
    for number in (0, 1):
        await_state(client, f"assigned-{number}", "processing")
    closing = (leaving, [TOKEN], False)
    assert close_tags(client, [closing]) == [False]
    later = submit("later")
    await_state(client, "later", "no-worker")
    go.touch()
    assert [future.result(timeout=120) for future in assigned] == [leaving] * 2
    # Results that only it holds are not finished with before they are let go.
    assert close_tags(client, [closing, (leaving, [TOKEN], True)]) == [True, False]
    grant_tags(client, staying, {TOKEN: 1})
    assert later.result(timeout=120) == staying
    del assigned
    deadline = time.monotonic() + 120
    while close_tags(client, [(leaving, [TOKEN], True)]) != [True]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert close_tags(client, [("tcp://127.0.0.1:1", [TOKEN], True)]) == [None]


def test_a_worker_that_is_gone_gets_no_tag(client: Client) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}), pytest.raises(OSError):
        grant_tags(client, "tcp://127.0.0.1:1", {TOKEN: 1})


def test_restrictions_are_read_from_the_scheduler(
    client: Client, addresses: list[str], submit: Callable[[str], Future]
) -> None:
    key: tuple[str | int, ...] = ("job", "stage-0", 1)
    with dask.annotate(resources={TOKEN: 1}):
        (future,) = client.get({key: (where,)}, [key], sync=False)
    # Asked at once: the scheduler may not have unpacked the graph yet.
    verify_restrictions(client, {key: {TOKEN: 1}}, [key])
    with pytest.raises(JobFailed, match=r"lost the restrictions of task .*wanted \{'GPU': 1\}, found"):
        verify_restrictions(client, {key: {"GPU": 1}}, [key])
    future.cancel()


def test_a_task_that_the_scheduler_never_saw_is_no_proof(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_tags, "_INTAKE_SECONDS", 0.2)
    with pytest.raises(JobFailed, match="has not taken in task"):
        verify_restrictions(client, {("job", "stage-0", 2): {TOKEN: 1}}, [("job", "stage-0", 2)])
