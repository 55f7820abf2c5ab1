"""What a driver holds in storage on behalf of its job: a lock for every snapshot in use, and the log of generations."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from daskinfer.errors import CheckpointError
from daskinfer.graphs.context import open_transports
from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.task_request import load_task_request
from daskinfer.ids import shorten
from daskinfer.models.tasks.encode import row_length
from daskinfer.models.tasks.fields import takes_text
from daskinfer.planning.sampling import choose_sample
from daskinfer.redaction import known_secrets
from daskinfer.runtime.protocol.keys import AliasHead
from daskinfer.runtime.snapshots.gate_verdict import judge_candidate, read_gate, tell_verdict
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.runtime.state_machine.rollout.canary import CanaryTrial
from daskinfer.spec.comparison import GateReport, PartComparison
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.job.record import JobRecord
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.snapshot import Manifest, Resolution
from daskinfer.storage.jobs.generation_log import GenerationLog
from daskinfer.storage.jobs.poison_rows import PoisonRecords
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects.urls import absolute_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.job_output import open_output, open_stage, open_standing, open_supplement
from daskinfer.storage.outputs.sink import WholeOutput
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.locks import SnapshotLock
from daskinfer.storage.registry.signatures import require_signatures


class SnapshotManager:
    """The snapshots of one run. Its calls may come from two threads.

    Parameters
    ----------
    record
        The job.
    recipe
        As it is now: the keys that must have signed may differ from the job's record.
    epoch
        Life of the driver.
    round
        Number of the retry; 0 for a run.
    member
        Its id, where it is one of several that run the job.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> registry = make_registry("registry", versions=1)
    >>> place = {"registry": registry.url, "resolution": registry.resolve("mini@prod")}
    >>> record = make_job("labels.jsonl").model_copy(update=place)
    >>> pin = SnapshotManager(record, record.recipe, epoch=1).begin()
    >>> [holder.job for holder in locks.list_holders(registry, pin.snapshot)]
    ['demo']
    """

    def __init__(self, record: JobRecord, recipe: Recipe, epoch: int, round: int = 0, member: str = "") -> None:
        self._record = record
        self._signed_by = recipe.model.signed_by
        self._workspace = absolute_url(recipe.workspace)
        self._epoch = epoch
        self._round = round
        self._member = member
        self._registry = Registry(record.registry)
        self._folder = JobStore(recipe.workspace, record.job).url
        self._held: dict[str, SnapshotLock] = {}
        self._users: dict[int, str] = {}
        self._guard = threading.RLock()
        self.log = GenerationLog(self._folder, record.first_pin, epoch)
        self.standing = open_standing(record, self._workspace, self.log)
        self.poison_records = PoisonRecords(self._folder, round, epoch)

    def begin(self) -> SnapshotPin:
        """Lock what the job is on, and let go of what an earlier driver held besides; return the pin to start on."""
        # A driver that died between a canary's verdict and its switch leaves the switch to us.
        candidate = next((pin for pin in self.log.known.pins if pin.is_trial), None)
        verdict = read_gate(self._folder)
        if candidate is not None and verdict is not None and self._record.recipe.consistency.canary is not None:
            self._settle(candidate, verdict)
        current = self.log.known.current
        self._lock(current)
        # Its driver ended between the verdict and giving the candidate back: nothing is ever computed on it again.
        if candidate is not None and verdict is not None and candidate.snapshot != current.snapshot:
            locks.remove(self._registry, candidate.snapshot, self._record.job)
        for pin in self.log.known.pins:
            if pin.generation == current.generation or pin.generation in self.log.known.dropped or pin.is_trial:
                continue
            if pin.generation > current.generation:
                self.log.drop(pin.generation, "its driver ended before anything started on it")
            if pin.snapshot != current.snapshot:
                locks.remove(self._registry, pin.snapshot, self._record.job)
        return current

    def retake(self, snapshot: str) -> SnapshotPin:
        """Lock a snapshot that a sealed job has computed rows on; return its pin.

        Raises
        ------
        SnapshotGone
            It was deleted since.
        """
        pin = next(pin for pin in self.log.known.pins if pin.snapshot == snapshot)
        self._lock(pin)
        return pin

    def _begin_trial(self) -> SnapshotPin | None:
        """Take up the candidate that the recipe wants compared, or go on with it; None where the verdict is given.

        Raises
        ------
        CheckpointError
            There is no such candidate, or it does not fit the plan.
        """
        trial, known = self._record.recipe.consistency.trial, self.log.known
        if trial is None or read_gate(self._folder) is not None:
            return None
        if (pin := next((pin for pin in known.pins if pin.is_trial), None)) is not None:
            self._lock(pin)
            return pin
        found = find_candidate(self._registry, self._record.recipe, known.current.snapshot)
        number = len(known.pins)
        pin = SnapshotPin(
            generation=number,
            snapshot=found.snapshot,
            sequence=found.sequence,
            version=found.version,
            scope=number,
            is_trial=True,
        )
        self.open(pin)
        return pin

    def open_trial(self, sink: WholeOutput) -> CanaryTrial | None:
        """Find out what is left of a trial: nothing where the recipe wants none, or its verdict is given.

        Parameters
        ----------
        sink
            The job's output.
        """
        record, rules = self._record, self._record.recipe.consistency
        pin = self._begin_trial()
        if pin is None or rules.trial is None:
            return None
        sample = choose_sample(record.job, record.partitions, rules.trial.salt, rules.trial.fraction)
        current = self.log.known.current.generation
        committed = {
            generation: {commit.partition: commit for commit in commits if commit.partition in sample}
            for generation, commits in (
                (current, sink.committed(sample)),
                (pin.generation, open_stage(record, pin).committed()),
            )
        }
        return CanaryTrial(pin, sample, rules.canary is not None, committed, current)

    def judge(self, pin: SnapshotPin, comparison: PartComparison) -> GateReport:
        """Give the verdict on a candidate and let it take over everything, or give it up, accordingly."""
        known = self.log.known
        report = judge_candidate(self._folder, self._record, known.current, pin, comparison)
        if self._record.recipe.consistency.canary is not None:
            self._settle(pin, report)
        return report

    def _settle(self, pin: SnapshotPin, report: GateReport) -> None:
        """Write down what a canary's verdict means; a second call changes nothing."""
        known = self.log.known
        if pin.generation in known.dropped or pin.generation in known.owned:
            return
        if report.verdict == "passed":
            self.log.switch(pin.generation, range(self._record.partitions))
        else:
            self.log.drop(pin.generation, tell_verdict(report))

    @property
    def tolerance(self) -> float:
        """Difference up to which the gate takes floats for the same."""
        trial = self._record.recipe.consistency.trial
        return 0.0 if trial is None else trial.gate.tolerance

    def look(self) -> AliasHead:
        """Return where the job's alias points now."""
        resolution = self._registry.resolve(self._record.resolution.reference)
        if resolution.sequence is None:
            raise CheckpointError(f"{resolution.reference} is no alias")
        return AliasHead(resolution.snapshot, resolution.sequence, resolution.version)

    def open(self, pin: SnapshotPin) -> None:
        """Lock a snapshot, make sure that it fits the job's plan, prepare its places and write it down.

        Raises
        ------
        CheckpointError
            It has another shape than the snapshot that the job was planned for.
        JobBusy
            Another driver has taken the job over.
        """
        try:
            self._lock(pin)
            self._check_fit(self._held[pin.snapshot].manifest)
            self.prepare_places(pin)
            self.log.prepare(pin)
        except BaseException:
            self._unlock(pin)
            raise

    def prepare_places(self, pin: SnapshotPin) -> None:
        """Make the folders that attempts on a pin write into; idempotent."""
        if self._round:
            open_supplement(self._record, pin, self._round, self._workspace, self._epoch).create()
        elif self._record.is_staged or pin.generation:
            open_stage(self._record, pin, self._workspace, self._epoch).create()
        for transport in open_transports(self._record, self.handle(pin)):
            transport.create()

    def handle(self, pin: SnapshotPin) -> JobHandle:
        """Return what tasks on a pin are told of the job."""
        return JobHandle(
            self._workspace,
            self._record.job,
            self._epoch,
            pin,
            round=self._round,
            member=self._member,
            secrets=known_secrets(),
        )

    def output(self) -> WholeOutput:
        """Return the job's output as this driver knows it."""
        return open_output(self._record, self._workspace, self.log, self._epoch)

    def switch(self, pin: SnapshotPin, partitions: Iterable[int]) -> Iterator[CommitDigest]:
        """Let a generation take over partitions; return the commits that still count."""
        self.log.switch(pin.generation, partitions)
        return self.standing.digests()

    def retire(self, pin: SnapshotPin, given_up: bool) -> None:
        """Give a snapshot back that nothing is computed on any more; nothing ever will be on what was given up."""
        if given_up:
            self.log.drop(pin.generation, "it could not be loaded")
        self._unlock(pin)

    def heartbeat(self) -> None:
        """Show that the holder of the locks lives."""
        for lock in self._locks():
            lock.heartbeat()

    def check(self) -> None:
        """Make sure that every snapshot in use is still there.

        Raises
        ------
        SnapshotGone
            A collector took the job for dead, because it was silent for too long.
        """
        for lock in self._locks():
            lock.check()

    def release(self) -> None:
        """Let go of every snapshot: the output is sealed."""
        with self._guard:
            for lock in self._held.values():
                lock.release()
            self._held.clear()
            self._users.clear()

    def _locks(self) -> list[SnapshotLock]:
        with self._guard:
            return list(self._held.values())

    def _lock(self, pin: SnapshotPin) -> None:
        lock = locks.take(self._registry, pin.snapshot, self._record.job)
        with self._guard:
            self._held[pin.snapshot] = lock
            self._users[pin.generation] = pin.snapshot
        require_signatures(self._registry, pin.snapshot, self._signed_by)

    def _unlock(self, pin: SnapshotPin) -> None:
        with self._guard:
            self._users.pop(pin.generation, None)
            if pin.snapshot not in self._users.values() and pin.snapshot in self._held:
                self._held.pop(pin.snapshot).release()

    def _check_fit(self, manifest: Manifest) -> None:
        record = self._record
        first = self._held[self.log.known.current.snapshot].manifest
        request = load_task_request(self._registry, record.recipe.model, manifest, record.outline.inputs)
        differences = {
            "its architecture": manifest.architecture != first.architecture,
            "its precision": manifest.dtype != first.dtype,
            "its code": manifest.entry != first.entry,
            "names or shapes of its tensors": _shape_of(manifest) != _shape_of(first),
        }
        if not any(differences.values()):
            outline = find_outline(self._registry.url, request, record.plan.numerics.dtype)
            differences["its layers, or what crosses between them"] = outline != record.outline
            is_shorter = takes_text(request) and row_length(request) < record.plan.max_length
            differences["the longest text that it takes"] = is_shorter
        if found := [what for what, differs in differences.items() if differs]:
            raise CheckpointError(
                f"snapshot {shorten(manifest.digest)} does not fit the plan of job {record.job}: {' and '.join(found)} "
                f"differ from {shorten(first.digest)}",
                hint="Start a new job on it: run with another output.url, or with --fresh.",
            )


def find_candidate(registry: Registry, recipe: Recipe, current: str) -> Resolution:
    """Return the snapshot that a recipe wants compared with the current one.

    Raises
    ------
    CheckpointError
        There is none, or it is the current one.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import Consistency, Trial
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> rules = Consistency(canary=Trial(checkpoint="mini@v2"))
    >>> recipe = make_job("labels.jsonl").recipe.model_copy(update={"consistency": rules})
    >>> find_candidate(make_registry("registry", versions=2), recipe, "sha256:ab").version
    2
    """
    trial = recipe.consistency.trial
    assert trial is not None
    found = registry.resolve(trial.checkpoint)
    if found.snapshot == current:
        raise CheckpointError(
            f"the candidate {trial.checkpoint} is {recipe.model.checkpoint} itself: {shorten(current)}",
            hint="Name another version, or leave the trial out.",
        )
    return found


def _shape_of(manifest: Manifest) -> dict[str, list[tuple[str, str, tuple[int, ...]]]]:
    return {group.name: [(each.name, each.dtype, each.shape) for each in group.tensors] for group in manifest.groups}
