"""The functions that run as Dask tasks on workers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from daskinfer.errors import JobBusy, SnapshotSkew
from daskinfer.graphs.context import JobContext, open_context
from daskinfer.graphs.handoff import Handoff, Hop, JobHandle, Tokens
from daskinfer.graphs.identity import get_identity
from daskinfer.planning.microbatches import pack_microbatches
from daskinfer.source import digest_source
from daskinfer.spec.activation import Activation
from daskinfer.spec.job import CommitRecord, StageTrail
from daskinfer.storage.activations import DirectActivation
from daskinfer.storage.inputs.reading import PartitionSource, read_partition
from daskinfer.storage.outputs.owner import confirm
from daskinfer.storage.outputs.sink import OutputPart
from daskinfer.storage.rows import RowBatch


def load_shard(handle: JobHandle, stage: int) -> dict[str, object]:
    """Bring a stage's shard into this process; return the acknowledgement's fields."""
    context = open_context(handle)
    loaded = context.load(stage)
    return {
        "stage": stage,
        "worker": get_identity(),
        "snapshot": loaded.snapshot,
        "source": digest_source(),
        "read_bytes": loaded.read_bytes,
        "seconds": loaded.seconds,
    }


def read_rows(source: PartitionSource) -> RowBatch:
    """Read a partition's rows."""
    return read_partition(source)


def tokenize(handle: JobHandle, rows: RowBatch) -> Tokens:
    """Turn a partition's accepted rows into token ids and pack them into microbatches."""
    context = open_context(handle)
    column = context.record.recipe.input.columns["text"]
    encoded = context.tokenizer.encode(rows.strings(column))
    starts = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in encoded], out=starts[1:])
    return Tokens(
        ids=np.concatenate(encoded) if encoded else np.empty(0, dtype=np.int32),
        starts=starts,
        pad=context.tokenizer.pad_id,
        microbatches=pack_microbatches(np.diff(starts), context.record.plan.microbatch_tokens),
    )


def count_microbatches(tokens: Tokens) -> int:
    """Tell the driver how many microbatches a partition has."""
    return len(tokens.microbatches)


def run_stage(
    handle: JobHandle, stage: int, partition: int, number: int, tokens: Tokens, received: Handoff | None
) -> Handoff:
    """Compute one microbatch's pass through one stage."""
    context = open_context(handle)
    loaded = context.load(stage)
    hidden, receive = None, 0.0
    if received is not None:
        if not isinstance(received.payload, Activation | DirectActivation):
            raise TypeError(f"stage {stage} was handed rows, not an activation")
        began = time.perf_counter()
        hidden = context.transports[stage - 1].receive(received.payload, partition, number)
        receive = time.perf_counter() - began
    ids, lengths = tokens.padded(number)
    began = time.perf_counter()
    result = loaded.stage.run(ids, lengths, hidden)
    compute = time.perf_counter() - began
    payload: Activation | DirectActivation | dict[str, np.ndarray]
    if isinstance(result, dict):
        payload, send = result, 0.0
    else:
        began = time.perf_counter()
        chunk = partition * context.record.recipe.input.partition_rows + number
        payload = context.transports[stage].send(partition, number, chunk, result)
        send = time.perf_counter() - began
    hop = Hop(stage, get_identity(), loaded.snapshot, compute, receive, send)
    return Handoff(payload, (*(received.trail if received else ()), hop))


def commit_partition(handle: JobHandle, rows: RowBatch, tokens: Tokens, handoffs: Sequence[Handoff]) -> CommitRecord:
    """Put a partition's rows back in order, write them, and commit them exactly once.

    Raises
    ------
    SnapshotSkew
        A microbatch was computed on another snapshot than the job's.
    JobBusy
        A newer driver has taken the job over.
    OutputOwned
        Another job has taken the output over.
    """
    context = open_context(handle)
    trail = _check_trails(context, rows.partition.number, handoffs)
    part = OutputPart(
        partition=rows.partition,
        positions=rows.positions,
        arrays=_restore_order(context, len(rows.positions), tokens, handoffs),
        kept=rows.table.select(list(context.record.recipe.output.keep)),
        rejects=rows.rejects,
    )
    if context.store.current_epoch() != handle.epoch:
        raise JobBusy(f"job {handle.job} was taken over by a newer driver; this one stops")
    confirm(context.record.output, handle.job)
    written = context.sink.write(part)
    record = CommitRecord(
        job=handle.job,
        snapshot=context.snapshot,
        partition=rows.partition.number,
        epoch=handle.epoch,
        rows_in=rows.partition.rows,
        rows_out=len(rows.positions),
        rows_quarantined=len(rows.rejects),
        tokens=int(tokens.starts[-1]),
        padded_tokens=sum(microbatch.tokens for microbatch in tokens.microbatches),
        microbatches=tuple((len(microbatch.rows), microbatch.length) for microbatch in tokens.microbatches),
        digest=written.digest,
        path=written.path,
        trail=trail,
    )
    committed = context.sink.commit(record)
    base = rows.partition.number * context.record.recipe.input.partition_rows
    for transport in context.transports:
        transport.delete(base + number for number in range(len(tokens.microbatches)))
    return committed


def _check_trails(context: JobContext, partition: int, handoffs: Sequence[Handoff]) -> tuple[StageTrail, ...]:
    sums: dict[int, StageTrail] = {}
    for number, handoff in enumerate(handoffs):
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
                workers=tuple(sorted({*so_far.workers, hop.worker})),
            )
    return tuple(sums[stage] for stage in sorted(sums))


def _restore_order(
    context: JobContext, rows: int, tokens: Tokens, handoffs: Sequence[Handoff]
) -> dict[str, np.ndarray]:
    ordered = {}
    for field in context.record.fields:
        dtype = object if field.kind == "string" else np.dtype(field.kind)
        column = np.empty((rows, *field.shape), dtype=dtype)
        for microbatch, handoff in zip(tokens.microbatches, handoffs, strict=True):
            if not isinstance(handoff.payload, dict):
                raise TypeError("the last stage handed on an activation, not rows")
            column[list(microbatch.rows)] = handoff.payload[field.name]
        ordered[field.name] = column
    return ordered
