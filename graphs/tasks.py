"""The functions that run as Dask tasks on workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from daskinfer.errors import DeviceFailed, JobBusy, NotFinite, SnapshotSkew
from daskinfer.graphs.blame import note_place
from daskinfer.graphs.context import JobContext, open_context
from daskinfer.graphs.handoff import Encoded, Handoff, Hop, JobHandle
from daskinfer.graphs.identity import get_identity
from daskinfer.logs import logging_context
from daskinfer.models.tasks.encode import encode_rows
from daskinfer.models.tasks.finish import find_not_finite, finish_rows
from daskinfer.planning.blocks import cut_blocks
from daskinfer.planning.comparison import compare_parts
from daskinfer.planning.microbatches import pack_microbatches
from daskinfer.source import digest_source
from daskinfer.spec.activation import Activation
from daskinfer.spec.comparison import PartComparison
from daskinfer.spec.job.commit import CommitRecord, StageTrail
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.spec.job.record import SNAPSHOT
from daskinfer.storage.activations.transports import DirectActivation
from daskinfer.storage.inputs.reading import PartitionSource, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.jobs.partition_claims import ClaimLog
from daskinfer.storage.outputs.job_output import read_staged
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.row_digest import digest_rows
from daskinfer.storage.outputs.sink import OutputPart

T = TypeVar("T")

_log = logging.getLogger(__name__)


def run_task(about: Mapping[str, Any], function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of these; every log record meanwhile says what it is about, those of a user's model code too.

    Examples
    --------
    >>> run_task({"job": "demo", "stage": 1}, max, 3, 5)
    5
    """
    with logging_context(**about):
        return function(*arguments)


def load_shard(handle: JobHandle, stage: int) -> dict[str, object]:
    """Bring a stage's shard into this process; return the acknowledgement's fields."""
    context = open_context(handle)
    loaded = context.load(stage)
    return {
        "stage": stage,
        "generation": handle.pin.generation,
        "worker": get_identity(),
        "snapshot": loaded.snapshot,
        "source": digest_source(),
        "read_bytes": loaded.read_bytes,
        "device": loaded.stage.device,
        "seconds": loaded.seconds,
    }


def read_rows(handle: JobHandle, source: PartitionSource) -> RowBatch:
    """Read a partition's rows; of a retry, those that were refused."""
    began = time.perf_counter()
    rows = open_context(handle).choose(read_partition(source))
    return replace(rows, seconds=time.perf_counter() - began)


def encode(handle: JobHandle, rows: RowBatch) -> Encoded:
    """Turn a partition's accepted rows into the model's inputs and pack them into microbatches."""
    context = open_context(handle)
    encoded, refused = encode_rows(
        context.encoder, {role: rows.values(column) for role, column in context.columns.items()}
    )
    plan = context.record.plan
    packed = pack_microbatches(encoded.lengths, plan.microbatch_tokens, plan.sharing)
    return Encoded(encoded, refused, packed, np.delete(rows.positions, list(refused)))


def count_microbatches(encoded: Encoded) -> tuple[int, int]:
    """Tell the driver how many microbatches a partition has, and how many bytes they are.

    Examples
    --------
    >>> from daskinfer.models.preprocessing.encoding import EncodedRows
    >>> from daskinfer.spec.rows import Microbatch
    >>> rows = EncodedRows(ids=np.array([1, 2, 3]), starts=np.array([0, 1, 3]))
    >>> count_microbatches(Encoded(rows, {}, (Microbatch((1,), 2), Microbatch((0,), 1)), np.array([0, 4])))[0]
    2
    """
    return len(encoded.microbatches), encoded.nbytes


def inspect_microbatch(encoded: Encoded, number: int) -> tuple[int, ...]:
    """Tell the driver which rows a microbatch has, by position in the partition.

    Examples
    --------
    >>> from daskinfer.models.preprocessing.encoding import EncodedRows
    >>> from daskinfer.spec.rows import Microbatch
    >>> rows = EncodedRows(ids=np.array([1, 2, 3]), starts=np.array([0, 1, 3]))
    >>> inspect_microbatch(Encoded(rows, {}, (Microbatch((1, 0), 2),), np.array([0, 4])), 0)
    (4, 0)
    """
    return encoded.positions_in(number)


def run_stage(
    handle: JobHandle,
    stage: int,
    partition: int,
    number: int,
    encoded: Encoded,
    received: Handoff | None,
    without: tuple[int, ...] = (),
) -> Handoff:
    """Compute one microbatch's pass through one stage, without the rows at some positions in the partition."""
    try:
        return _run_stage(handle, stage, partition, number, encoded, received, without)
    except Exception as error:
        note_place(error, stage, get_identity())
        raise


def _run_stage(
    handle: JobHandle,
    stage: int,
    partition: int,
    number: int,
    encoded: Encoded,
    received: Handoff | None,
    without: tuple[int, ...],
) -> Handoff:
    context = open_context(handle)
    loaded = context.load(stage)
    bundle: tuple[np.ndarray, ...] = ()
    receive = 0.0
    if received is not None:
        if not isinstance(received.payload, Activation | DirectActivation):
            raise TypeError(f"stage {stage} was handed rows, not an activation")
        began = time.perf_counter()
        bundle = context.transports[stage - 1].receive(received.payload, partition, number)
        receive = time.perf_counter() - began
    inputs = encoded.batch(number, without)
    began = time.perf_counter()
    try:
        result, retries = loaded.stage.run(inputs, bundle)
    except DeviceFailed as error:
        error.worker = get_identity()
        raise
    compute = time.perf_counter() - began
    payload: Activation | DirectActivation | dict[str, np.ndarray]
    if isinstance(result, dict):
        payload, send = result, 0.0
    else:
        began = time.perf_counter()
        payload = context.transports[stage].send(partition, number, partition * context.record.slots + number, result)
        send = time.perf_counter() - began
    hop = Hop(stage, get_identity(), loaded.snapshot, compute, receive, send, retries, loaded.stage.device_peak)
    _log.debug("microbatch computed", extra={"compute": compute, "receive": receive, "send": send})
    return Handoff(payload, (*(received.trail if received else ()), hop))


def commit_partition(
    handle: JobHandle,
    rows: RowBatch,
    encoded: Encoded,
    numbers: Sequence[int],
    handoffs: Sequence[Handoff],
    poison_records: Sequence[PoisonRecord],
) -> CommitRecord:
    """Put a partition's rows back in order, write them, and commit them exactly once.

    Parameters
    ----------
    handle, rows, encoded
        The job, the partition, and what the model was given of it.
    numbers, handoffs
        Microbatches and what became of them, in order.
    poison_records
        Rows that were left out of them.

    Raises
    ------
    SnapshotSkew
        A microbatch was computed on another snapshot than the job's.
    JobBusy
        A newer driver has taken the job over.
    ClaimLost
        Another member of the job has taken the partition over.
    OutputOwned
        Another job has taken the output over.
    """
    context = open_context(handle)
    passed = dict(zip(numbers, handoffs, strict=True))
    poison = {row.row: row for poison_record in poison_records for row in poison_record.rows}
    left_out = {poison_record.microbatch: poison_record.positions for poison_record in poison_records}
    computed = [encoded.items(number, left_out.get(number, ())) for number in range(len(encoded.microbatches))]
    trail = _check_trails(context, rows.partition.number, passed)
    arrays = _gather(context, encoded, computed, passed)
    rows = rows.without({int(rows.positions[index]): reason for index, reason in encoded.refused.items()})
    rows = rows.without(
        {position: row.error for position, row in poison.items()},
        {position: row.kind for position, row in poison.items()},
    )
    results = finish_rows(context.request, encoded.rows, arrays)
    not_finite = {
        int(encoded.positions[index]): reason
        for index, reason in find_not_finite(encoded.rows, arrays).items()
        if int(encoded.positions[index]) not in poison
    }
    dropped = set(poison) | _quarantine_not_finite(context, rows, not_finite)
    rows = rows.without(
        {position: reason for position, reason in not_finite.items() if position in dropped},
        dict.fromkeys(not_finite, "not-finite"),
    )
    if dropped:
        kept = ~np.isin(encoded.positions, list(dropped))
        results = {name: values[kept] for name, values in results.items()}
    if context.record.is_staged:
        results = {**results, SNAPSHOT: np.full(len(rows.positions), context.snapshot, object)}
    part = OutputPart(
        partition=rows.partition,
        positions=rows.positions,
        arrays=results,
        kept=rows.table.select(list(context.record.recipe.output.keep)),
        rejects=rows.rejects,
    )
    part = context.complete(part)
    confirm_driver(context, handle, rows.partition.number)
    confirm(context.record.output, handle.job)
    began = time.perf_counter()
    written = context.sink.write(part)
    write = time.perf_counter() - began
    record = CommitRecord(
        job=handle.job,
        snapshot=context.snapshot,
        generation=handle.pin.generation,
        partition=rows.partition.number,
        epoch=handle.epoch,
        round=handle.round,
        member=handle.member,
        rows_in=rows.partition.rows,
        rows_out=len(part.positions),
        rows_quarantined=len(part.rejects),
        rows_truncated=int(np.isin(encoded.positions[encoded.rows.truncated], list(dropped), invert=True).sum()),
        rows_not_finite=len(not_finite),
        tokens=int(encoded.rows.lengths.sum()),
        padded_tokens=sum(microbatch.tokens for microbatch in encoded.microbatches),
        microbatches=tuple(
            (len(items), microbatch.length) for items, microbatch in zip(computed, encoded.microbatches, strict=True)
        ),
        read=rows.seconds,
        write=write,
        digest=written.digest,
        path=written.path,
        size=written.bytes,
        rows_digest=digest_rows(rows),
        trail=trail,
    )
    committed = context.sink.commit(record)
    base = rows.partition.number * context.record.slots
    for transport in context.transports:
        transport.delete(base + number for number in range(len(encoded.microbatches)))
    return committed


def _quarantine_not_finite(context: JobContext, rows: RowBatch, found: Mapping[int, str]) -> set[int]:
    """Return which rows with NaN or infinity go to the quarantine, by position in the partition.

    Raises
    ------
    NotFinite
        The recipe wants to stop at the first.
    """
    model, policy = context.record.recipe.model, context.record.recipe.errors.nan
    if policy == "auto":
        policy = "keep" if model.task == "forward" else "quarantine"
    if found and policy == "stop":
        position, reason = min(found.items())
        index = int(np.searchsorted(rows.positions, position))
        raise NotFinite(
            f"row {rows.partition.first_row + position:,}, {rows.sources[index]}:{rows.lines[index]}: {reason}",
            hint="It stops there again. errors.nan=quarantine or keep would go on; that is another job: give it another "
            "output.url, or --fresh.",
        )
    return set(found) if policy == "quarantine" else set()


def confirm_driver(context: JobContext, handle: JobHandle, partition: int) -> None:
    """Make sure that the driver which asked for a partition may still commit it.

    Raises
    ------
    JobBusy
        A newer driver has taken the job over.
    ClaimLost
        Another member of the job has taken the partition over.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> handle = JobHandle("work", "demo", 0, finish_job("work", "labels.jsonl").first_pin)
    >>> confirm_driver(JobContext(handle), handle, partition=0)
    Traceback (most recent call last):
        ...
    daskinfer.errors.JobBusy: job demo was taken over by a newer driver; this one stops
    """
    if context.store.current_epoch() != handle.epoch:
        raise JobBusy(f"job {handle.job} was taken over by a newer driver; this one stops")
    if handle.member:
        blocks = cut_blocks(context.record)
        ClaimLog(context.store.url, handle.epoch).confirm(blocks.find(partition), handle.member)


def compare_partition(
    current: JobHandle, candidate: JobHandle, records: tuple[CommitRecord, CommitRecord], tolerance: float
) -> PartComparison:
    """Compare a partition's committed results on two snapshots."""
    job = open_context(current).record
    parts = [read_staged(job, handle.pin, record) for handle, record in zip((current, candidate), records, strict=True)]
    fields = [field for field in job.fields if field.name != SNAPSHOT]
    return compare_parts(parts[0], parts[1], fields, tolerance)


def _check_trails(context: JobContext, partition: int, handoffs: Mapping[int, Handoff]) -> tuple[StageTrail, ...]:
    sums: dict[int, StageTrail] = {}
    for number, handoff in handoffs.items():
        for hop in handoff.trail:
            if hop.snapshot != context.snapshot:
                raise SnapshotSkew(
                    f"partition {partition}, microbatch {number}: stage {hop.stage} computed on {hop.snapshot}, "
                    f"but the job is locked on {context.snapshot}"
                )
            so_far = sums.get(hop.stage) or StageTrail(
                stage=hop.stage, microbatches=0, compute=0, receive=0, send=0, workers=()
            )
            sums[hop.stage] = StageTrail(
                stage=hop.stage,
                microbatches=so_far.microbatches + 1,
                compute=so_far.compute + hop.compute,
                receive=so_far.receive + hop.receive,
                send=so_far.send + hop.send,
                out_of_memory=so_far.out_of_memory + hop.out_of_memory,
                device_peak=max(so_far.device_peak, hop.device_peak),
                workers=tuple(sorted({*so_far.workers, hop.worker})),
            )
    return tuple(sums[stage] for stage in sorted(sums))


def _gather(
    context: JobContext, encoded: Encoded, computed: Sequence[tuple[int, ...]], handoffs: Mapping[int, Handoff]
) -> dict[str, np.ndarray]:
    """Return what the last stage computed, item by item in their order, and 0 for items that it never saw."""
    gathered = {}
    for name, spec in context.record.outline.outputs.items():
        column: np.ndarray | None = None
        for number, handoff in handoffs.items():
            if not isinstance(handoff.payload, dict):
                raise TypeError("the last stage handed on an activation, not rows")
            values = handoff.payload[name]
            if column is None:
                column = np.zeros((len(encoded.rows.lengths), *values.shape[1:]), dtype=values.dtype)
            column[list(computed[number])] = values
        if column is None:
            column = np.zeros(spec.shape(len(encoded.rows.lengths), 1), dtype=spec.dtype)
        gathered[name] = column
    return gathered
