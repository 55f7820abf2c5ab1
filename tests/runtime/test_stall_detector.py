"""When a task that waits for its inputs says that a link is cut; and what the installed distributed has to say to that."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

from daskinfer.graphs.handoff import JobHandle
from daskinfer.runtime.monitoring import connectivity
from daskinfer.runtime.monitoring.connectivity import can_connect, try_links
from daskinfer.runtime.monitoring.stall_detector import MENDING_LOOKS, STALLED_LOOKS, Stalls, Wait
from daskinfer.runtime.monitoring.task_snapshot import look_at_tasks
from daskinfer.runtime.protocol.events import LinkRestored, NetworkCut
from daskinfer.runtime.protocol.keys import Link
from daskinfer.spec.job.generation import SnapshotPin

A, B, B_LATER, C = "tcp://one:1", "tcp://two:1", "tcp://two:2", "tcp://three:1"


def wait(worker: str = B, *holders: str, task: str = "task") -> Wait:
    return Wait(task, worker, frozenset(holders or {A}))


class Watched:
    """Stalls, looked at once a second; everybody beats but those who are `silent` since some second."""

    def __init__(self) -> None:
        self.stalls = Stalls()
        self.second = 0
        self.silent: dict[str, int] = {}
        self.workers = [A, B, C]

    def look(self, *waits: Wait, cut: bool | None = True) -> tuple[list[NetworkCut], set[Link], list[LinkRestored]]:
        """Look, and try what is due: `cut` tells what comes of it, if anything does."""
        self.second += 1
        seen = {worker: self.silent.get(worker, self.second) - 0.1 for worker in self.workers}
        told = self.stalls.take(self.second, seen, waits)
        due = set(self.stalls.due)
        return told, due, self.stalls.hear({} if cut is None else dict.fromkeys(due, not cut))


def test_a_link_is_told_of_when_its_worker_cannot_connect_and_both_ends_live() -> None:
    watched = Watched()
    looks = [watched.look(wait()) for _ in range(STALLED_LOOKS)]
    assert [due for _, due, _ in looks] == [set()] * (STALLED_LOOKS - 1) + [{(B, A)}]
    assert not any(told for told, _, _ in looks)
    assert watched.look(wait())[0] == [], "nobody has been heard of since, for all that is known"
    assert watched.look(wait())[0] == [NetworkCut(((B, A),), STALLED_LOOKS + 1)]
    assert watched.look(wait())[0] == []


def test_whatever_gets_on_is_not_asked() -> None:
    watched = Watched()
    for number in range(40):
        assert watched.look(wait(task=f"task {number // 4}")) == ([], set(), [])
    for number in range(40):
        assert watched.look(wait(B, *((A, C) if number % 4 else (A,)))) == ([], set(), [])


@pytest.mark.parametrize("cut", [False, None])
def test_a_link_that_is_there_or_of_which_nothing_is_said_is_tried_again(cut: bool | None) -> None:
    watched = Watched()
    looks = [watched.look(wait(B, A, C), cut=cut) for _ in range(3 * STALLED_LOOKS)]
    assert [second for second, (_, due, _) in enumerate(looks, 1) if due] == [5, 10, 15]
    assert looks[4][1] == {(B, A), (B, C)}
    assert not any(told or corrected for told, _, corrected in looks)


def test_a_host_that_is_down_is_not_cut_off() -> None:
    watched = Watched()
    watched.silent[A] = 2
    for _ in range(30):
        assert watched.look(wait())[0] == []
    watched.workers.remove(A)  # the scheduler has noticed
    watched.look()
    watched.workers.append(A)
    assert not any(watched.look()[0] for _ in range(10)), "it is another one now"


def test_a_worker_that_is_frozen_is_not_asked() -> None:
    watched = Watched()
    watched.silent[B] = 1
    assert not any(watched.look(wait())[1] for _ in range(30))


def test_a_link_that_comes_back_before_it_was_told_of_is_not_told_of() -> None:
    watched = Watched()
    watched.silent[A] = 2
    for second in range(3 * STALLED_LOOKS):
        watched.look(wait(), cut=second < STALLED_LOOKS)
    del watched.silent[A]
    assert not any(watched.look()[0] for _ in range(10))


def test_a_link_is_tried_until_it_is_there_again_between_whoever_is_on_its_hosts() -> None:
    watched = Watched()
    while not watched.look(wait())[0]:
        pass
    watched.workers = [A, C, B_LATER]
    looks = [watched.look() for _ in range(2 * MENDING_LOOKS)]
    assert [due for _, due, _ in looks if due] == [{(B_LATER, A)}] * 2
    watched.workers.remove(A)
    assert not any(watched.look()[1] for _ in range(MENDING_LOOKS)), "there is nobody to connect to"
    watched.workers.append(A)
    looks = [watched.look(cut=False) for _ in range(2 * MENDING_LOOKS)]
    assert [corrected for _, _, corrected in looks if corrected] == [[LinkRestored((B, A))]]


LOOKS = st.tuples(st.lists(st.sampled_from([A, B]), max_size=3), st.sampled_from([False, None]))


@given(st.lists(LOOKS, max_size=100))
def test_whoever_can_connect_is_never_cut_off(looks: list[tuple[list[str], bool | None]]) -> None:
    watched = Watched()
    for holders, cut in looks:
        waits = [wait(holder, C, task=f"task {number}") for number, holder in enumerate(holders)]
        told, _, corrected = watched.look(*waits, cut=cut)
        assert not told and not corrected


# Against the installed distributed


def test_the_scheduler_knows_what_a_worker_lacks(client: Client, addresses: list[str]) -> None:
    holder, stopped = addresses
    handle = JobHandle("memory://work", "job", epoch=1, pin=SnapshotPin(snapshot="sha256:one"))
    held = client.submit(abs, -1, key=("job", "held", 1), workers=[holder])
    held.result(timeout=120)
    process = client.run(os.getpid, workers=[stopped])[stopped]
    os.kill(process, signal.SIGSTOP)
    try:
        wants = client.submit(abs, held, key=("job", "wants", 1), workers=[stopped])
        others = client.submit(abs, held, key=("job-2/wants", 1), workers=[stopped])
        deadline = time.monotonic() + 120
        while not (waits := look_at_tasks(client, handle)[1]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert waits == [Wait(("job", "wants", 1), stopped, frozenset({holder}))]
    finally:
        os.kill(process, signal.SIGCONT)
    assert wants.result(timeout=120) == others.result(timeout=120) == 1
    assert look_at_tasks(client, handle)[1] == []


def test_workers_say_whom_they_reach(client: Client, addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = addresses
    nobody = "tcp://127.0.0.1:1"
    monkeypatch.setattr(connectivity, "_ANSWER_SECONDS", 60.0)  # however busy the machine is
    found = try_links(client, [(one, other), (other, one), (one, nobody)])
    assert found == {(one, other): True, (other, one): True, (one, nobody): False}
    monkeypatch.setattr(connectivity, "_ANSWER_SECONDS", 0.5)
    assert try_links(client, [(nobody, one)]) == {}, "of a worker that is not there, nothing is known"


def test_a_connection_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "TRY_SECONDS", 0.2)
    # Linux answers no more of them than may wait.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        _, port = server.getsockname()
        answers = [can_connect(f"tcp://127.0.0.1:{port}") for _ in range(4)]
    assert answers[0] and not answers[-1]
    assert can_connect("inproc://192.168.1.1/8/1")
