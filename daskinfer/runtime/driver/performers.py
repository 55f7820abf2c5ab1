"""Carrying out what the state machine asks for: one function for each kind of action, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from daskinfer.graphs.build import job_tag, stage_tag
from daskinfer.graphs.handoff import JobHandle
from daskinfer.planning.comparison import merge_parts
from daskinfer.runtime.cluster.connection import worker_shapes
from daskinfer.runtime.cluster.resource_tags import grant_tags
from daskinfer.runtime.cluster.restarts import restart_worker
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.driver.control_requests import ControlRequests
from daskinfer.runtime.driver.drains import Departures
from daskinfer.runtime.driver.run_context import RunContext, Tell
from daskinfer.runtime.driver.storage_requests import StorageRequests
from daskinfer.runtime.driver.submission import Submissions
from daskinfer.runtime.protocol.actions import (
    Abandon,
    Action,
    Adopt,
    Answer,
    ClaimBlocks,
    Commit,
    Compare,
    Fail,
    GrantTag,
    IncidentRecord,
    Inspect,
    Judge,
    LoadShard,
    LookAtAlias,
    OpenGeneration,
    Prepare,
    Probe,
    RecordPoison,
    Recovered,
    Release,
    ReleaseShard,
    Restart,
    Retire,
    Seal,
    SpeculativeAttempt,
    StatusLine,
    Submit,
    Switch,
    Withdraw,
)
from daskinfer.runtime.protocol.events import Committed, Compared, Event, GenerationOpened, PoisonRecorded
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.spec.comparison import PartComparison
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.storage.inputs.reading import partition_source
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.store import JobStore

Performer = Callable[[Any], object]


class Performers:
    """Tasks, shards, storage and control of one job on one cluster.

    Parameters
    ----------
    context
        The job and the cluster.
    machine
        Whose actions they are.
    tell
        Hears of what comes of them.
    poison
        What earlier runs know of rows that break whoever computes them.
    claim_store
        Claims partitions, where several drivers run the job.

    Examples
    --------
    >>> from unittest.mock import Mock, patch
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.testing.fixtures.plans import make_plan
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> performers = Performers(Mock(handle=handle, plan=make_plan()), Mock(pins=()), print)
    >>> with patch(f"{__name__}.restart_worker") as restart:
    ...     performers.perform(Restart("tcp://a:1"))
    >>> restart.call_args.args[1]
    'tcp://a:1'
    >>> performers.close()
    """

    def __init__(
        self,
        context: RunContext,
        machine: StateMachine,
        tell: Tell,
        poison: Iterable[PoisonRecord] = (),
        claim_store: ClaimStore | None = None,
    ) -> None:
        client, handle, snapshots = context.client, context.handle, context.snapshots
        self._context = context
        self._machine = machine
        self._tell = tell
        self._handles = {pin.generation: replace(handle, pin=pin) for pin in machine.pins}
        self._comparison: PartComparison | None = None
        self._used: set[str] = set()
        self.is_sealed = False
        self.submissions = Submissions(client, len(context.plan.stages), context.requires, tell, poison)
        self._storage = StorageRequests(snapshots, context.progress, context.recovery.storage, tell, claim_store)
        log = ControlLog(JobStore(handle.workspace, handle.job).url)
        self._control = ControlRequests(log, handle.epoch, tell, is_shared=bool(handle.member))
        self._drains = Departures(client, self._list_tags, self._free)
        self._performers = self._make_performers()

    def perform(self, action: Action) -> None:
        """Do what an action asks for.

        Raises
        ------
        DaskinferError
            The run cannot go on.
        """
        self._performers[type(action)](action)

    def take_in(self, event: Event) -> None:
        """Take in what has to be known to do what comes of an event."""
        match event:
            case GenerationOpened(pin):
                self._handles[pin.generation] = replace(self._context.handle, pin=pin)
            case PoisonRecorded(record):
                self.submissions.leave_out(record)
            case Compared(part):
                self._comparison = merge_parts([self._comparison, part] if self._comparison else [part])
            case Committed(record, generation) if not self._machine.is_on_trial(generation):
                self._storage.note(record)

    def look(self) -> None:
        """Look, now and then, who has finished, and what is asked."""
        self._drains.look()
        self._control.look()

    def close(self) -> None:
        """Wait for what is under way in storage."""
        self._storage.close()
        self._control.close()

    def _make_performers(self) -> Mapping[type[Any], Performer]:
        tasks, ask = self.submissions, self._storage.run
        return {
            LoadShard: self._load,
            GrantTag: self._grant,
            ReleaseShard: lambda action: self._drains.begin(action.stage, action.worker),
            Restart: lambda action: restart_worker(self._context.client, action.worker),
            Retire: self._retire,
            Prepare: self._prepare,
            Submit: lambda each: tasks.compute(self._handle(each), each.partition, each.numbers, each.attempt),
            SpeculativeAttempt: lambda each: tasks.compute_twice(
                self._handle(each), each.partition, each.number, each.attempt, each.slow
            ),
            Abandon: lambda action: tasks.drop_loser(action.task),
            Commit: lambda action: tasks.commit(self._handle(action), action.partition, action.attempt),
            Release: lambda action: tasks.release((action.generation, action.partition)),
            Withdraw: lambda action: tasks.withdraw_microbatch((action.generation, action.partition), action.number),
            Inspect: lambda action: tasks.inspect(self._handle(action), action.partition, action.number),
            Probe: lambda each: tasks.probe(
                self._handle(each), each.partition, each.number, each.without, each.attempt
            ),
            Compare: self._compare,
            Judge: lambda action: self._storage.judge(action.pin, self._comparison),
            LookAtAlias: ask,
            OpenGeneration: ask,
            Adopt: ask,
            Switch: ask,
            RecordPoison: ask,
            ClaimBlocks: ask,
            Answer: lambda action: self._control.answer(action.number, action.detail),
            Seal: self._seal,
            Fail: self._fail,
            # For observers.
            IncidentRecord: _do_nothing,
            Recovered: _do_nothing,
            StatusLine: _do_nothing,
        }

    def _handle(self, action: Submit | SpeculativeAttempt | Commit | Inspect | Probe) -> JobHandle:
        return self._handles[action.generation]

    def _load(self, action: LoadShard) -> None:
        self._used.add(action.worker)
        self._drains.stop(action.stage, action.worker)
        self.submissions.load(self._handles[action.generation], action.stage, action.worker)

    def _grant(self, action: GrantTag) -> None:
        self._grant_tags(self._handles[action.generation], action.stage, action.worker)

    def _grant_tags(self, handle: JobHandle, stage: int, worker: str) -> None:
        if worker not in self._machine.workers.ready(handle.pin.generation, stage):
            return
        try:
            grant_tags(self._context.client, worker, {stage_tag(handle, stage): 1, job_tag(handle): 1})
        except TimeoutError:  # later again, behind all that has happened: it may be told by then that it is frozen
            self._tell(partial(self._grant_tags, handle, stage, worker))
        except OSError:  # it died meanwhile: the scheduler's event follows
            pass

    def _retire(self, action: Retire) -> None:
        """Take a generation's shards and tags off the workers, and give its lock back."""
        handle, client = self._handles.pop(action.generation), self._context.client
        for worker in self._used & {worker.address for worker in worker_shapes(client)}:
            with suppress(OSError):  # it died meanwhile
                grant_tags(client, worker, dict.fromkeys(self._tags_of(handle), 0))
                self.submissions.free([handle], None, worker, is_told=False)
        self._storage.retire(handle.pin, action.given_up)

    def _prepare(self, action: Prepare) -> None:
        source = partition_source(self._context.table, action.partition)
        self.submissions.prepare(self._handles[action.generation], source, action.attempt)

    def _compare(self, action: Compare) -> None:
        records = (action.current, action.candidate)
        handles = (self._handles[records[0].generation], self._handles[records[1].generation])
        self.submissions.compare(handles, records, self._context.snapshots.tolerance)

    def _seal(self, action: Seal) -> None:
        self.is_sealed = True

    def _fail(self, action: Fail) -> None:
        raise action.error

    def _free(self, stage: int | None, worker: str) -> None:
        self.submissions.free(list(self._handles.values()), stage, worker)

    def _list_tags(self, stage: int | None) -> Sequence[str]:
        """Return the tags of a stage, of all generations; all of the job's for None."""
        handles = self._handles.values()
        if stage is not None:
            return [stage_tag(handle, stage) for handle in handles]
        return [job_tag(self._context.handle), *(tag for each in handles for tag in self._tags_of(each))]

    def _tags_of(self, handle: JobHandle) -> list[str]:
        return [stage_tag(handle, stage.index) for stage in self._context.plan.stages]


def _do_nothing(action: Action) -> None:
    pass
