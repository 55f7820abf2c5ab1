"""The driver: tells the state machine what happened, and has done what it decides."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from distributed import Client

from daskinfer.errors import ClusterLost, DaskinferError, Interrupted
from daskinfer.graphs.build import tag_prefix
from daskinfer.runtime.cluster.cleanup import bring
from daskinfer.runtime.cluster.connection import (
    current_connection,
    is_connected,
    measure_workers,
    says_closed,
    worker_shapes,
)
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.driver.observer import RunObserver
from daskinfer.runtime.driver.performers import Performers
from daskinfer.runtime.driver.run_context import RunContext
from daskinfer.runtime.driver.scheduler_events import listen
from daskinfer.runtime.monitoring.monitor import ClusterMonitor
from daskinfer.runtime.protocol.actions import Action
from daskinfer.runtime.protocol.events import (
    Event,
    MemoryPressure,
    Tick,
    WorkerFrozen,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.spec.plan import WorkerShape

TICK_SECONDS = 0.25
_LOST = "the connection to the Dask scheduler is lost"


class Driver:
    """Runs one job on one cluster until it is sealed or cannot go on.

    Parameters
    ----------
    context
        The job and the cluster.
    machine
        What decides.
    observers
        Whoever wants to know, in this order.
    poison
        What earlier runs know of rows that break whoever computes them.
    claim_store
        Claims partitions, where several drivers run the job.

    Examples
    --------
    >>> from unittest.mock import Mock
    >>> from daskinfer.graphs.handoff import JobHandle
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.testing.fixtures.plans import make_plan
    >>> handle = JobHandle("work", "demo", 1, SnapshotPin(snapshot="sha256:ab"))
    >>> driver = Driver(Mock(handle=handle, plan=make_plan(), requires={}), Mock(pins=()))
    >>> driver.running_since is None
    True
    """

    def __init__(
        self,
        context: RunContext,
        machine: StateMachine,
        observers: Sequence[RunObserver] = (),
        poison: Iterable[PoisonRecord] = (),
        claim_store: ClaimStore | None = None,
    ) -> None:
        self._context = context
        self._connection = current_connection(context.client)
        self._machine = machine
        self._observers = observers
        self._happened: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
        self._performers = Performers(context, machine, self._happened.put, poison, claim_store)
        frozen = context.recovery.frozen
        self._monitor = ClusterMonitor(context.client, context.handle, context.requires, frozen, self._happened.put)
        self._tick_due = 0.0
        self.running_since: float | None = None

    def run(self) -> None:
        """Run until every partition is committed.

        Raises
        ------
        Interrupted
            The user stopped it.
        ClusterLost
            The scheduler is gone; another driver may go on over another connection.
        DaskinferError
            It cannot go on; everything committed stays.
        """
        client, handle, admission = self._context.client, self._context.handle, self._context.admission
        try:
            bring(client, job=handle.job, member=handle.member, tags=tag_prefix(handle))
            loads = self._context.progress.loads
            with listen(client, handle, loads, self._measure, self._happened.put) as look_at, self._monitor:
                admission.wake = lambda worker: self._happened.put(partial(look_at, worker))
                self._perform(self._machine.start(self._measure(client)))
                while not self._performers.is_sealed:
                    self._step()
        except KeyboardInterrupt:
            raise Interrupted("interrupted; everything committed so far stays") from None
        except DaskinferError:
            raise
        except Exception as error:
            # Whatever a client says in its last moments, what it means is that the scheduler is gone.
            self._check_connection(error)
            if says_closed(error):  # the client has yet to find out
                raise ClusterLost(_LOST) from error
            raise
        finally:
            self._performers.close()

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What every worker does."""
        return self._machine.workers.roster()

    def withdraw(self) -> None:
        """Take the tasks of this job back from a cluster that others use; all else goes as the connection ends."""
        self._performers.submissions.withdraw()

    def _step(self) -> None:
        self._check_connection()
        for lost in self._performers.submissions.look_again():
            self._perform(self._machine.handle(lost, time.monotonic()))
        self._performers.look()
        event: Event | None = None
        with suppress(queue.Empty):
            event = self._complete(self._happened.get(timeout=TICK_SECONDS)())
        if event is not None:
            for observer in self._observers:
                observer.on_event(event)
            self._performers.take_in(event)
            self._perform(self._machine.handle(event, time.monotonic()))
        if time.monotonic() >= self._tick_due:  # however much happens
            self._tick_due = time.monotonic() + TICK_SECONDS
            self._perform(self._machine.handle(Tick(), time.monotonic()))
        for observer in self._observers:
            observer.on_step(self)

    def _complete(self, event: Event | None) -> Event | None:
        """Return an event with what only the driver knows of it; None where it does not concern this job."""
        match event:
            case WorkerFrozen() | WorkerPaused() | WorkerResumed() | MemoryPressure():
                return event if self._context.admission.is_usable(event.worker) else None
            case WorkerLost():
                self._context.admission.forget(event.worker)
                return replace(event, silent=self._monitor.silence(event.worker))
        return event

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            for observer in self._observers:
                observer.on_action(action)
            self._performers.perform(action)
        if self.running_since is None and self._machine.running:
            self.running_since = time.monotonic()

    def _check_connection(self, cause: Exception | None = None) -> None:
        if not is_connected(self._context.client, self._connection):
            raise ClusterLost(_LOST) from cause

    def _measure(self, client: Client, workers: list[str] | None = None) -> list[WorkerShape]:
        """Return the shapes of workers; asking for their devices is for those that may have other memory than the host's."""
        there = {shape.address: shape for shape in worker_shapes(client)}
        usable = self._context.admission.admit([worker for worker in workers or there if worker in there])
        if self._context.plan.numerics.device != "cpu":
            return measure_workers(client, sorted(usable))
        return [shape for address, shape in there.items() if address in usable]
