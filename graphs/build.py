"""Plan and partitions to Dask graphs, task by task, so that no optimisation can drop an annotation.

Every key carries the job, the step, the partition and an attempt: a task submitted again is a new task, never a
redefinition of an old one. The job comes first: Dask groups tasks by that, and keeps what it knows of a group for ever once
all tasks of the group are gone, as those of a step are now and then; those that load shards stay as long as the job runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.task_spec import List, Task, TaskRef

from daskinfer.graphs.context import forget_shards
from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.tasks import (
    commit_partition,
    compare_partition,
    count_microbatches,
    encode,
    inspect_microbatch,
    load_shard,
    read_rows,
    run_stage,
    run_task,
)
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.storage.inputs.reading import PartitionSource

Key = tuple[str | int, ...]

# Enough to bind a task to the job's workers, too little ever to make one wait for another.
_JOB_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """Tasks to submit together."""

    tasks: dict[Key, Task]
    """Key -> task; a reference to a key that is not here means one submitted before."""
    wanted: tuple[Key, ...]
    """Keys whose results are held until they are released."""
    resources: dict[Key, dict[str, float]]
    """What each task must find on its worker."""


@dataclass(frozen=True, slots=True)
class StageTask:
    """A microbatch in a stage of a worker."""

    generation: int
    partition: int
    number: int
    attempt: int
    stage: int
    worker: str = ""
    """Address."""
    seconds: float | None = None
    """How long it has been running; None while it waits."""


def stage_tag(handle: JobHandle, stage: int) -> str:
    """Return the resource that says: this worker holds this stage's shard of this snapshot for this driver.

    The driver is part of it: one that was killed, or lost its scheduler, leaves its tags behind.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> stage_tag(JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab")), stage=2)
    'demo/1.0/g0/stage-2'
    """
    return f"{tag_prefix(handle)}g{handle.pin.generation}/stage-{stage}"


def job_tag(handle: JobHandle) -> str:
    """Return the resource that says: this worker works for this driver.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> job_tag(JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"), connection=3))
    'demo/1.3/job'
    """
    return f"{tag_prefix(handle)}job"


def tag_prefix(handle: JobHandle) -> str:
    """Return what the names of all tags of this driver begin with, and no other driver's.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> tag_prefix(JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"), member="ann"))
    'demo/1.ann.0/'
    """
    return f"{handle.job}/{handle.driver}/"


def load_graph(handle: JobHandle, stage: int, worker: str, attempt: int = 0) -> TaskGraph:
    """Load one shard; the caller pins it to the worker, which has no tag yet.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> load_graph(handle, 2, "tcp://10.0.0.7:8786").wanted
    (('demo', 'load-2', 'tcp://10.0.0.7:8786', '1.0', 0, 0),)
    """
    key: Key = (handle.job, f"load-{stage}", worker, handle.driver, handle.pin.generation, attempt)
    return TaskGraph({key: _task(handle, key, load_shard, handle, stage)}, (key,), {key: {}})


def free_graph(handles: Sequence[JobHandle], stage: int | None, worker: str, attempt: int) -> TaskGraph:
    """Let a worker forget a stage's shards, or everything, of several generations; the caller pins it to the worker.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> free_graph([handle], None, "tcp://10.0.0.7:8786", attempt=0).wanted
    (('demo', 'free', 'tcp://10.0.0.7:8786', '1.0', 0),)
    """
    key: Key = (handles[0].job, "free", worker, handles[0].driver, attempt)
    return TaskGraph({key: Task(key, forget_shards, tuple(handles), stage)}, (key,), {key: {}})


def prepare_graph(handle: JobHandle, source: PartitionSource, attempt: int) -> TaskGraph:
    """Read and encode a partition, and count its microbatches; wanted: rows, encoded rows, count.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.spec.rows import Partition
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> source = SimpleNamespace(partition=Partition(number=7, first_row=14, rows=2, segments=()))
    >>> [key[1] for key in prepare_graph(handle, source, attempt=0).wanted]
    ['read', 'encode', 'count']
    """
    number = source.partition.number
    rows = _key(handle, "read", number, attempt)
    encoded = _key(handle, "encode", number, attempt)
    count = _key(handle, "count", number, attempt)
    tasks = {
        rows: _task(handle, rows, read_rows, handle, source),
        encoded: _task(handle, encoded, encode, handle, TaskRef(rows)),
        count: _task(handle, count, count_microbatches, TaskRef(encoded)),
    }
    resources = {job_tag(handle): _JOB_SHARE}
    return TaskGraph(tasks, (rows, encoded, count), dict.fromkeys(tasks, resources))


def microbatch_graph(
    handle: JobHandle,
    stages: int,
    requires: Mapping[str, float],
    partition: int,
    numbers: Sequence[int],
    encoded: Key,
    attempt: int,
    without: Mapping[int, tuple[int, ...]] | None = None,
) -> TaskGraph:
    """Send microbatches through all stages; wanted: the last stage of each, in the order of `numbers`.

    `without` names rows that some of them leave out, by position in the partition.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> graph = microbatch_graph(handle, 2, {"GPU": 1}, 7, [0, 1], encoded=("demo", "encode"), attempt=0)
    >>> graph.wanted
    (('demo', 'stage-1', '1.0', 0, 7, 0, 0), ('demo', 'stage-1', '1.0', 0, 7, 1, 0))
    >>> graph.resources[graph.wanted[0]]
    {'GPU': 1, 'demo/1.0/g0/stage-1': 1}
    """
    without = without or {}
    needs = [{**requires, stage_tag(handle, stage): 1} for stage in range(stages)]
    tasks: dict[Key, Task] = {}
    resources: dict[Key, dict[str, float]] = {}
    wanted = []
    for number in numbers:
        received = None
        for stage in range(stages):
            key = _key(handle, f"stage-{stage}", partition, number, attempt)
            left_out = without.get(number, ())
            tasks[key] = _task(
                handle, key, run_stage, handle, stage, partition, number, TaskRef(encoded), received, left_out
            )
            resources[key] = needs[stage]
            received = TaskRef(key)
        wanted.append(key)
    return TaskGraph(tasks, tuple(wanted), resources)


def inspect_graph(handle: JobHandle, partition: int, number: int, encoded: Key, attempt: int) -> TaskGraph:
    """List the rows of a microbatch; wanted: their positions in the partition.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> inspect_graph(handle, partition=7, number=0, encoded=("demo", "encode"), attempt=0).wanted
    (('demo', 'inspect', '1.0', 0, 7, 0, 0),)
    """
    key = _key(handle, "inspect", partition, number, attempt)
    task = Task(key, inspect_microbatch, TaskRef(encoded), number)
    return TaskGraph({key: task}, (key,), {key: {job_tag(handle): _JOB_SHARE}})


def commit_graph(
    handle: JobHandle,
    partition: int,
    rows: Key,
    encoded: Key,
    handoffs: Mapping[int, Key],
    attempt: int,
    poison_records: Sequence[PoisonRecord] = (),
) -> TaskGraph:
    """Write and commit a partition; wanted: its commit record. A microbatch of poisonous rows alone has no handoff.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> graph = commit_graph(handle, 7, ("demo", "read"), ("demo", "encode"), {0: ("demo", "stage-1")}, attempt=0)
    >>> graph.wanted, sorted(graph.tasks[graph.wanted[0]].dependencies)
    ((('demo', 'commit', '1.0', 0, 7, 0),), [('demo', 'encode'), ('demo', 'read'), ('demo', 'stage-1')])
    """
    key = _key(handle, "commit", partition, attempt)
    passed = List([TaskRef(handoff) for handoff in handoffs.values()])
    numbers, found = tuple(handoffs), tuple(poison_records)
    task = _task(handle, key, commit_partition, handle, TaskRef(rows), TaskRef(encoded), numbers, passed, found)
    return TaskGraph({key: task}, (key,), {key: {job_tag(handle): _JOB_SHARE}})


def compare_graph(
    current: JobHandle, candidate: JobHandle, records: tuple[CommitRecord, CommitRecord], tolerance: float
) -> TaskGraph:
    """Compare a partition's results on two snapshots; wanted: what differs.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> from daskinfer.storage.outputs.sink import Written
    >>> from daskinfer.testing.fixtures.jobs import make_commit, make_job, make_results
    >>> pins = [SnapshotPin(generation=each, snapshot=f"sha256:{each}") for each in (0, 1)]
    >>> current, candidate = (JobHandle("work", "demo", epoch=1, pin=pin) for pin in pins)
    >>> job = make_job("labels.jsonl")
    >>> commit = make_commit(job, make_results(job, 0), Written("part-00000000.jsonl", "00", 90))
    >>> compare_graph(current, candidate, (commit, commit), tolerance=0.01).wanted
    (('demo', 'compare', '1.0', 1, 0),)
    """
    key = _key(candidate, "compare", records[0].partition)
    task = _task(candidate, key, compare_partition, current, candidate, records, tolerance)
    return TaskGraph({key: task}, (key,), {key: {job_tag(current): _JOB_SHARE}})


def find_stage_task(handle: JobHandle, key: object, worker: str, seconds: float | None = None) -> StageTask | None:
    """Tell which microbatch in which stage a task of a worker is; None for any other task, or another driver's.

    Examples
    --------
    >>> from daskinfer.spec.job.generation import SnapshotPin
    >>> handle = JobHandle("work", "demo", epoch=1, pin=SnapshotPin(snapshot="sha256:ab"))
    >>> (key,) = microbatch_graph(handle, 2, {}, 7, [3], encoded=("demo", "encode"), attempt=0).wanted
    >>> find_stage_task(handle, key, "tcp://10.0.0.7:8786")
    StageTask(generation=0, partition=7, number=3, attempt=0, stage=1, worker='tcp://10.0.0.7:8786', seconds=None)
    >>> find_stage_task(handle, ("another", "encode"), "tcp://10.0.0.7:8786") is None
    True
    """
    match key:
        case (handle.job, str(name), handle.driver, int(generation), int(partition), int(number), int(attempt)):
            step, _, stage = name.partition("-")
            if step == "stage":
                return StageTask(generation, partition, number, attempt, int(stage), worker, seconds)
    return None


def _task(handle: JobHandle, key: Key, function: Callable[..., Any], *arguments: Any) -> Task:
    """Return a task whose log records say what it is about: what its key says, and the snapshot."""
    step, _, stage = str(key[1]).partition("-")
    place = () if step == "load" else key[4:]
    names = ("partition", "microbatch", "attempt") if len(place) == 3 else ("partition", "attempt")
    about = {"job": handle.job, "epoch": handle.epoch, "snapshot": handle.pin.snapshot} | dict(
        zip(names, place, strict=False)
    )
    return Task(key, run_task, about | ({"stage": int(stage)} if stage else {}), function, *arguments)


def _key(handle: JobHandle, step: str, *place: Any) -> Key:
    return (handle.job, step, handle.driver, handle.pin.generation, *place)
