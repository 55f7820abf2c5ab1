"""The sinks of a job, as its record asks for them: for its driver, and for the attempts at its partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from daskinfer.errors import IntegrityError, JobBusy
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import Generations, SnapshotPin
from daskinfer.spec.job.record import JobRecord
from daskinfer.storage.jobs.generation_log import GenerationLog
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects.urls import absolute_url
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.committed import CommittedPartitions
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.formats import choose_output_format, make_sink
from daskinfer.storage.outputs.owner import current_owner
from daskinfer.storage.outputs.reading import SealedPart, read_part
from daskinfer.storage.outputs.retry_rounds import Round, close_round, supplement_url
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, PartSink, WholeOutput
from daskinfer.storage.outputs.staging import StagedOutput, StagedPartSink, staged_url


@dataclass(frozen=True, slots=True)
class _Turn:
    """Raises once a newer driver has begun."""

    store: JobStore
    epoch: int

    def __call__(self) -> None:
        now = self.store.current_epoch()
        if now != self.epoch:
            raise JobBusy(
                f"job {self.store.job} was taken over by a newer driver (epoch {now}); that of epoch {self.epoch} stops",
                hint="Wait until it ends, or stop it there.",
            )


def open_fence(record: JobRecord, workspace: str, epoch: int = 0) -> Fence:
    """Return what a job may write through in its output; `epoch` is the life of its driver, 0 where there is none.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> fence = open_fence(finish_job("work", "labels.jsonl"), "work", epoch=1)
    >>> fence.confirm()
    >>> fence.job, fence.turn
    ('demo', 1)
    """
    check = _Turn(JobStore(workspace, record.job), epoch) if epoch else None
    return Fence(absolute_url(record.output), record.job, epoch, check)


def open_output(record: JobRecord, workspace: str, log: GenerationLog | None = None, epoch: int = 0) -> WholeOutput:
    """Return a job's whole output.

    Parameters
    ----------
    record
        The job.
    workspace
        Where it is recorded.
    log
        The driver's own log of generations; without it every look reads the log anew.
    epoch
        Life of the driver that writes it; 0 for whoever only looks.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = open_output(finish_job("work", "labels.jsonl"), "work")
    >>> [(record.partition, record.rows_out) for record in output.committed()]
    [(0, 2), (1, 1)]
    """
    fence = open_fence(record, workspace, epoch)
    layout = _make_layout(record, record.first_pin if not record.is_staged else None)
    sink = make_sink(record.output, _format_of(record), layout, fence)
    if not record.is_staged:
        return sink
    if log is not None:
        return StagedOutput(record.output, layout, sink, lambda: log.known, fence)
    return StagedOutput(record.output, layout, sink, lambda: read_generations(record, workspace), fence)


def open_standing(record: JobRecord, workspace: str, log: GenerationLog | None = None) -> CommittedPartitions:
    """Return the committed partitions of a job; the parameters are those of `open_output`.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> sorted(open_standing(finish_job("work", "labels.jsonl"), "work").numbers())
    [0, 1]
    """
    layout = _make_layout(record, None)
    if log is not None:
        return CommittedPartitions(absolute_url(record.output), layout, lambda: log.known)
    return CommittedPartitions(absolute_url(record.output), layout, lambda: read_generations(record, workspace))


def check_record(store: JobStore, record: JobRecord) -> None:
    """Make sure that a job is still what it was when its output became its own.

    Raises
    ------
    IntegrityError
        Its job.json, or its table of partitions, was changed since.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> check_record(JobStore("work", "demo"), record)
    >>> check_record(JobStore("work", "demo"), record.model_copy(update={"request": "sha256:0"}))
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: .../work/jobs/demo/job.json was changed since the job began: request is ...
    """
    owner = current_owner(absolute_url(record.output))
    if owner is None or owner.job != store.job:
        return
    told = {"job": record.job, "request": record.request, "snapshot": record.resolution.snapshot}
    changed = [f"{key} is {now}, was {getattr(owner, key)}" for key, now in told.items() if now != getattr(owner, key)]
    if not changed and owner.record and owner.record != store.record_digest():
        changed = ["its bytes are others"]
    if changed:
        raise IntegrityError(
            f"{store.record_place()} was changed since the job began: {'; '.join(changed)}",
            hint="Put the file back as it was, or start over: daskinfer run RECIPE --fresh.",
        )
    if owner.table and owner.table != store.table_digest():
        raise IntegrityError(
            f"{store.table_place()} was changed since the job began: its bytes are others",
            hint="Put the file back as it was, or start over: daskinfer run RECIPE --fresh.",
        )


def read_generations(record: JobRecord, workspace: str) -> Generations:
    """Return the snapshots of a job, as its log tells now.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> [pin.generation for pin in read_generations(finish_job("work", "labels.jsonl"), "work").pins]
    [0]
    """
    return GenerationLog(JobStore(workspace, record.job).url, record.first_pin).known


def open_part_sink(record: JobRecord, pin: SnapshotPin, workspace: str = "", epoch: int = 0) -> PartSink:
    """Return where attempts on a pin write and commit, for the driver of that epoch.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_results
    >>> record = make_job("labels.jsonl")
    >>> open_part_sink(record, record.first_pin).write(make_results(record, 0)).path
    'part-00000000.jsonl'
    """
    layout, name = _make_layout(record, pin), _format_of(record)
    if not (record.is_staged or pin.generation):
        return make_sink(record.output, name, layout, open_fence(record, workspace, epoch))
    return open_stage(record, pin, workspace, epoch)


def open_stage(record: JobRecord, pin: SnapshotPin, workspace: str = "", epoch: int = 0) -> StagedPartSink:
    """Return the folder of a generation whose parts lie apart, for the driver of that epoch.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_results
    >>> record = make_job("labels.jsonl")
    >>> _ = open_stage(record, SnapshotPin(generation=1, snapshot="sha256:1")).write(make_results(record, 0))
    >>> from pathlib import Path
    >>> [str(path) for path in Path(".").rglob("part-*")]
    ['labels.jsonl/_daskinfer/generations/demo/0001/part-00000000.jsonl']
    """
    layout, fence = _make_layout(record, pin), open_fence(record, workspace, epoch)
    records = CommitLog(fence.url, layout, pin.scope, fence=fence)
    place = staged_url(fence.url, record.job, pin.generation)
    return StagedPartSink(records, make_sink(place, _format_of(record), layout, fence, records))


def open_supplement(record: JobRecord, pin: SnapshotPin, round: int, workspace: str, epoch: int) -> StagedPartSink:
    """Return where a driver's merged parts of a retry wait; `pin` is what their rows are computed on.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job, make_results
    >>> record = finish_job("work", "labels.jsonl", refused=[1])
    >>> open_supplement(record, record.first_pin, 1, "work", epoch=1).write(make_results(record, 0)).path
    'part-00000000.jsonl'
    """
    layout, fence = _make_layout(record, pin), open_fence(record, workspace, epoch)
    records = CommitLog(fence.url, layout, round=round, fence=fence)
    place = supplement_url(fence.url, record.job, round, epoch)
    return StagedPartSink(records, make_sink(place, _format_of(record), layout, fence, records))


def read_sealed(record: JobRecord, part: SealedPart) -> OutputPart:
    """Return a part of a job that is sealed, as it was before a retry.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output as open_sealed
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.zarr", refused=[1])
    >>> part = read_sealed(record, open_sealed(record.output).parts[0])
    >>> part.rows, [reject.row for reject in part.rejects]
    (array([0]), [1])
    """
    layout = _make_layout(record, record.first_pin)
    return read_part(absolute_url(record.output), layout, part.partition, part.path, part.digest)


def merge_round(record: JobRecord, generations: Generations, round: Round, fence: Fence) -> dict[str, Any]:
    """Merge a retry whose parts are all committed into the output; see `close_round`.

    Examples
    --------
    >>> from daskinfer.storage.outputs.retry_rounds import next_round, note_inputs, save_round
    >>> from daskinfer.testing.fixtures.jobs import finish_job, make_commit, make_results
    >>> record = finish_job("work", "labels.jsonl", refused=[1])
    >>> round, fence = next_round(record.output, "demo"), open_fence(record, "work")
    >>> _ = save_round(fence, round), note_inputs(fence, round, record.inputs)
    >>> sink, part = open_supplement(record, record.first_pin, 1, "work", epoch=1), make_results(record, 0)
    >>> _ = sink.commit(make_commit(record, part, sink.write(part), round=1))
    >>> merge_round(record, read_generations(record, "work"), round, fence)["rows_quarantined"]
    0
    """
    layout, url = _make_layout(record, record.first_pin), fence.url

    scopes = {part.partition: generations.owner(part.partition) if record.is_staged else 0 for part in round.parts}
    opened = {scope: CommitLog(url, layout, scope, fence=fence) for scope in {*scopes.values()}}
    logs = {partition: opened[scope] for partition, scope in scopes.items()}
    records = list(CommitLog(url, layout, round=round.number).committed())
    return close_round(fence, make_sink(url, _format_of(record), layout, fence), round, records, logs)


def take_back(record: JobRecord, partitions: Iterable[int], fence: Fence, round: int = 0) -> None:
    """Take back that partitions of an unfinished job, or of its retry, are committed; its driver computes them again.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> take_back(record, [0], open_fence(record, "work"))
    >>> list(open_standing(record, "work").numbers())
    [1]
    """
    CommitLog(fence.url, _make_layout(record, record.first_pin), round=round, fence=fence).take_back(partitions)


def read_staged(record: JobRecord, pin: SnapshotPin, commit: CommitRecord) -> OutputPart:
    """Return a committed part of a job that is not sealed yet.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> commit = next(open_output(record, "work").committed())
    >>> read_staged(record, record.first_pin, commit).arrays["label"]
    array(['class-0', 'class-1'], dtype=object)
    """
    place = staged_url(record.output, record.job, pin.generation)
    url = place if record.is_staged or pin.generation else absolute_url(record.output)
    return read_part(url, _make_layout(record, pin), commit.partition, commit.path, commit.digest)


def describe_result(record: JobRecord, snapshot: str) -> dict[str, str]:
    """Return what the manifest of a job's output says of the job.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> sorted(describe_result(make_job("labels.jsonl"), "sha256:0"))
    ['checkpoint', 'code', 'inputs', 'job', 'key', 'plan', 'recipe', 'snapshot']
    """
    return {
        "job": record.job,
        "key": record.key,
        "checkpoint": record.resolution.reference,
        "snapshot": snapshot,
        "recipe": record.recipe.digest,
        "inputs": record.inputs,
        "code": record.code,
        "plan": record.plan.digest,
    }


def _format_of(record: JobRecord) -> str:
    return choose_output_format(record.output, record.recipe.output.format)


def _make_layout(record: JobRecord, pin: SnapshotPin | None) -> OutputLayout:
    recipe = record.recipe
    provenance: Mapping[str, str] = {} if pin is None else {"daskinfer_snapshot": pin.snapshot}
    return OutputLayout(
        job=record.job,
        fields=record.fields,
        # A record at rest has its keys in another order.
        keep={name: record.keep[name] for name in recipe.output.keep},
        partition_rows=recipe.input.partition_rows,
        rows=record.rows,
        metadata={**provenance, "daskinfer_recipe": recipe.digest},
        snapshots={}
        if record.is_staged
        else {each.generation: each.snapshot for each in (record.first_pin, pin) if each},
    )
