"""Asking something of a job that runs, wherever its driver is: through its control log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from daskinfer.errors import JobFailed, UsageError
from daskinfer.spec.job.control import Outcome, WorkerState
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.lease import read_heartbeat
from daskinfer.storage.jobs.membership import list_members
from daskinfer.storage.jobs.store import JobStore, find_job
from daskinfer.storage.objects.naming import suggest

LOOK_SECONDS = 0.5


def cancel(
    job: str, workspace: str, *, wait: bool = True, watch: Callable[[float, str], None] | None = None
) -> Outcome:
    """Stop the driver of a job, as an interrupt does.

    Parameters
    ----------
    job
        Id of the job, or the beginning of one.
    workspace
        Where it is recorded.
    wait
        Return only once the driver has answered.
    watch
        Called with the seconds waited so far, and what is being waited for.

    Raises
    ------
    UsageError
        Nobody runs the job.
    JobFailed
        The driver ended before it answered.

    Examples
    --------
    >>> from daskinfer.storage.jobs.store import create_job
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> store = create_job("work", lambda job: make_job("labels.jsonl", job=job), "demo")
    >>> lease = store.acquire()
    >>> cancel("demo", "work", wait=False)
    Outcome(job='demo', op='cancel', request=0, worker='', answered=False, detail='')
    >>> lease.release()
    >>> cancel("demo", "work")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: job demo is not running: it is stopped
    See how it stands: daskinfer status demo
    """
    store = _find_running(job, workspace)
    number = ControlLog(store.url).ask_cancel(store.current_epoch())
    asked = Outcome(job=store.job, op="cancel", request=number)
    return _await_answer(store, asked, watch) if wait else asked


def drain(
    job: str, worker: str, workspace: str, *, wait: bool = True, watch: Callable[[float, str], None] | None = None
) -> Outcome:
    """Let a job finish what it has in work on a worker, and then do without that worker, for good.

    Parameters
    ----------
    job
        Id of the job, or the beginning of one.
    worker
        Address, name or host:port of the worker, or the beginning of one.
    workspace
        Where the job is recorded.
    wait
        Return only once the worker has nothing of the job any more.
    watch
        Called with the seconds waited so far, and what is being waited for.

    Raises
    ------
    UsageError
        Nobody runs the job, or it has no such worker.
    JobFailed
        The driver ended before the worker was drained.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> _ = finish_job("work", "labels.jsonl")
    >>> drain("demo", "10.0.0.2", "work")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: job demo is not running: it is done
    See how it stands: daskinfer status demo
    """
    store = _find_running(job, workspace)
    address = find_worker(_roster(store), worker, store.job)
    number = ControlLog(store.url).ask_drain(store.current_epoch(), address)
    asked = Outcome(job=store.job, op="drain", request=number, worker=address)
    return _await_answer(store, asked, watch) if wait else asked


def find_worker(roster: Sequence[WorkerState], wanted: str, job: str) -> str:
    """Return the address of the worker that somebody means.

    Raises
    ------
    UsageError
        There is none, or there are several.

    Examples
    --------
    >>> roster = [WorkerState(worker=f"tcp://10.0.0.{number}:4000", does="computes") for number in (1, 2, 11)]
    >>> find_worker(roster, "10.0.0.2", "demo")
    'tcp://10.0.0.2:4000'
    >>> find_worker(roster, "10.0.0.1", "demo")
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: 10.0.0.1 may mean tcp://10.0.0.1:4000, tcp://10.0.0.11:4000
    Give more of the address.
    """
    names = {state.worker: (state.worker, state.host_port, state.name) for state in roster}
    found = [address for address, known in names.items() if wanted in known]
    found = found or [address for address, known in names.items() if any(name.startswith(wanted) for name in known)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{wanted} may mean {', '.join(found)}", hint="Give more of the address.")
    raise UsageError(
        f"job {job} has no worker {wanted}",
        hint=suggest(
            wanted, (state.host_port for state in roster), f"Its workers are not known yet: daskinfer status {job}"
        ),
    )


def _find_running(job: str, workspace: str) -> JobStore:
    store = find_job(workspace, job)
    state = store.state()
    if state != "running":
        raise UsageError(
            f"job {store.job} is not running: it is {state}", hint=f"See how it stands: daskinfer status {store.job}"
        )
    return store


def _roster(store: JobStore) -> tuple[WorkerState, ...]:
    beats = [*list_members(store.url, store.current_epoch()), read_heartbeat(store.url)]
    latest = [beat.progress for beat in beats if beat is not None and beat.progress is not None]
    return tuple(worker for progress in latest for worker in progress.workers)


def _await_answer(store: JobStore, asked: Outcome, watch: Callable[[float, str], None] | None) -> Outcome:
    log, began = ControlLog(store.url), time.monotonic()
    while (answer := log.find_answer(asked.request)) is None:
        # In this order: a driver that ended a moment ago may have answered.
        state = store.state()
        if state != "running" and (answer := log.find_answer(asked.request)) is None:
            raise JobFailed(
                f"the driver of job {store.job} ended before it answered: the job is {state}",
                hint=f"Look: daskinfer status {store.job}",
            )
        if answer is None:
            if watch is not None:
                watch(time.monotonic() - began, _describe(store, asked))
            time.sleep(LOOK_SECONDS)
    return asked.model_copy(update={"answered": True, "detail": answer.detail})


def _describe(store: JobStore, asked: Outcome) -> str:
    if asked.op == "cancel":
        return "waiting for the driver"
    state = next((state for state in _roster(store) if state.worker == asked.worker), None)
    if state is None or state.does != "leaves":
        return "waiting for the driver"
    return f"{state.host_port} finishes what it has in work, or waits for somebody to take over"
