"""Shards that are loaded or released, drains, and ticks. A lost worker is handled in `faults/worker_failures.py`."""

from __future__ import annotations

from daskinfer.errors import DeviceFailed, StorageRefused
from daskinfer.runtime.protocol.actions import Action, Fail, IncidentRecord, LoadShard
from daskinfer.runtime.protocol.events import DrainAsked, Running, ShardFailed, ShardLoaded, ShardReleased, Tick
from daskinfer.runtime.state_machine.acknowledgements import find_mismatch
from daskinfer.runtime.state_machine.failures import refuse_load
from daskinfer.runtime.state_machine.parts import Parts
from daskinfer.runtime.state_machine.rules import RunRules


class ShardEvents:
    """Handles the events of shards; it holds nothing.

    Parameters
    ----------
    parts
        Whose state follows.
    rules
        What the run goes by.

    Examples
    --------
    >>> from daskinfer.runtime.state_machine.parts import make_parts
    >>> from daskinfer.runtime.state_machine.rollout.alias_tracker import AliasTracker
    >>> from daskinfer.runtime.state_machine.rules import EarlierWork
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.testing.fixtures.plans import make_rules
    >>> rules = make_rules()
    >>> tracker = AliasTracker(SnapshotPin(snapshot="sha256:1"), rules.consistency)
    >>> events = ShardEvents(make_parts(rules, EarlierWork(partitions=3, committed={}), tracker), rules)
    >>> events.on_load_failed(ShardFailed(stage=0, worker="a", error=MemoryError()), now=0.0)
    []
    """

    def __init__(self, parts: Parts, rules: RunRules) -> None:
        self._parts = parts
        self._rules = rules

    def on_loaded(self, event: ShardLoaded, now: float) -> list[Action]:
        """Let a worker compute that holds a shard of the right snapshot, by the right code."""
        ack = event.ack
        pin = self._parts.rollout.pins.get(ack.generation)
        if pin is None:
            return []  # given up while it was loading
        if (error := find_mismatch(ack, pin, self._rules.source)) is not None:
            return [Fail(error)]
        return self._parts.workers.acknowledge(ack.generation, ack.stage, ack.worker, now)

    def on_load_failed(self, event: ShardFailed, now: float) -> list[Action]:
        """Load again, on another worker where the device failed, or give the snapshot up."""
        parts, error = self._parts, event.error
        if not parts.workers.is_loading(event.generation, event.stage, event.worker):
            return []  # it died while loading: WorkerLost has dealt with it
        if isinstance(error, DeviceFailed):
            why = f"lost its device: {error.message}"
            return parts.failures.take_off(event.worker, now, "device-failed", why)
        is_candidate = parts.rollout.is_candidate(event.generation)
        if isinstance(error, StorageRefused) and not is_candidate:
            load = ("load", event.generation, event.stage, event.worker)
            again = LoadShard(event.stage, event.worker, event.generation)
            return parts.retries.refuse(load, again, error, now)
        refusal = refuse_load(event)
        return parts.rollout.give_up(refusal) if is_candidate else [Fail(refusal)]

    def on_running(self, event: Running, now: float) -> list[Action]:
        """Take workers off whose microbatches hang, and start slow ones twice."""
        hung, actions = self._parts.stragglers.look(event.tasks, now)
        for worker, why in hung.items():
            actions += self._parts.failures.take_off(worker, now, "worker-hung", why)
        return actions

    def on_drain_asked(self, event: DrainAsked, now: float) -> list[Action]:
        """Let a worker go once nothing is lost by it."""
        note = IncidentRecord("drain-asked", f"{event.by} asked for it: {event.worker}")
        return [note, *self._parts.workers.drain(event.number, event.worker, now)]

    def on_released(self, event: ShardReleased, now: float) -> list[Action]:
        """Take in that a worker is free of a shard."""
        return self._parts.workers.stood_down(event.worker, event.stage, now)

    def on_tick(self, event: Tick, now: float) -> list[Action]:
        """Do what is due by now."""
        parts = self._parts
        return [
            *parts.retries.due(now),
            *parts.failures.end_pauses(now),
            *parts.failures.admit(now),
            *parts.workers.look(parts.partitions.left, now),
            *parts.unassigned.look(parts.workers.missing(now), parts.failures.describe_missing, now),
        ]
