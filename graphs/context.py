"""What a worker process knows about a job: its records, tokenizer, transports and shards, each fetched once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from daskinfer.errors import SnapshotGone
from daskinfer.graphs.handoff import JobHandle
from daskinfer.graphs.identity import get_folder
from daskinfer.graphs.reporting import LoadMeter
from daskinfer.graphs.task_request import load_task_request
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import Encoder, make_encoder
from daskinfer.models.tasks.fields import task_wants
from daskinfer.redaction import learn
from daskinfer.spec.activation import Edge
from daskinfer.spec.job.record import JobRecord
from daskinfer.spec.outline import InputArray
from daskinfer.spec.plan import Numerics
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.activations.transports import DirectTransport, Transport, ZarrTransport
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.job_output import open_part_sink, open_supplement, read_sealed
from daskinfer.storage.outputs.merging import merge_part
from daskinfer.storage.outputs.quarantine import read_rejects
from daskinfer.storage.outputs.retry_rounds import Round, read_round
from daskinfer.storage.outputs.sink import OutputPart, PartSink
from daskinfer.storage.registry.catalog import Registry, explain_loss
from daskinfer.storage.tensors.node_cache import load_tensors

if TYPE_CHECKING:
    from daskinfer.models.execution.stage import Stage

ShardKey = tuple[str, int, int, str, Numerics, str, ModelOptions, tuple[InputArray, ...]]


@dataclass(slots=True)
class Loaded:
    """A stage in memory and what it took to bring it there."""

    stage: Stage
    snapshot: str
    """Digest of the manifest that its weights were verified against."""
    read_bytes: int
    seconds: float


class JobContext:
    """A job seen from one process. Cheap to make, thread-safe to use.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl", job="seen")
    >>> context = JobContext(JobHandle("work", "seen", 1, record.first_pin))
    >>> context.record.rows, context.snapshot == record.resolution.snapshot
    (3, True)
    """

    def __init__(self, handle: JobHandle) -> None:
        self.handle = handle
        self.store = JobStore(handle.workspace, handle.job)
        self.record: JobRecord = self.store.record()
        self.snapshot = handle.pin.snapshot

    @cached_property
    def manifest(self) -> Manifest:
        """The locked snapshot's manifest, its digest checked."""
        try:
            return self._registry.manifest(self.snapshot)
        except FileNotFoundError as error:
            raise SnapshotGone(
                f"snapshot {self.snapshot}, which job {self.record.job} is locked on, is gone from {self.record.registry}",
                hint="Restore the registry, or start over on another snapshot with --fresh.",
            ) from error

    @cached_property
    def request(self) -> TaskRequest:
        """What the job asks of its model."""
        record = self.record
        return load_task_request(self._registry, record.recipe.model, self.manifest, record.outline.inputs)

    @cached_property
    def encoder(self) -> Encoder:
        """What turns rows into the model's inputs, by the snapshot's own files."""
        return make_encoder(self.request, self.record.plan.max_length)

    @cached_property
    def columns(self) -> dict[str, str]:
        """What the task reads, and the column it comes from."""
        given = self.record.recipe.input.columns
        return {role: given.get(role, role) for role in task_wants(self.request)}

    @cached_property
    def sink(self) -> PartSink:
        """Where committed partitions go."""
        handle = self.handle
        if handle.round:
            return open_supplement(self.record, handle.pin, handle.round, handle.workspace, handle.epoch)
        return open_part_sink(self.record, handle.pin, handle.workspace, handle.epoch)

    @cached_property
    def round(self) -> Round | None:
        """What is retried, if this is a retry."""
        handle = self.handle
        return read_round(self.record.output, handle.job, handle.round) if handle.round else None

    def choose(self, rows: RowBatch) -> RowBatch:
        """Return the rows of a partition that are to be computed: all, or those that a retry is for."""
        if not self.handle.round:
            return rows
        first = rows.partition.first_row
        return rows.only({reject.row - first for reject in read_rejects(self.record.output, rows.partition.number)})

    def complete(self, part: OutputPart) -> OutputPart:
        """Return what is to be committed of a partition: its results, with those that a retry found there already."""
        if self.round is None:
            return part
        return merge_part(read_sealed(self.record, self.round.part(part.partition.number)), part)

    @cached_property
    def transports(self) -> tuple[Transport[Any], ...]:
        """One for each edge of the plan."""
        return open_transports(self.record, self.handle)

    def load(self, stage: int) -> Loaded:
        """Return a stage's module, loading its shard when this process has not."""
        with explain_loss(self._registry, self.snapshot):
            return _SHARDS.get(self.shard_key(stage), partial(self._load, stage))

    def shard_key(self, stage: int) -> ShardKey:
        """Return what a stage's shard goes by in this process."""
        plan, model = self.record.plan, self.record.recipe.model
        wanted = plan.stages[stage]
        place = (self.snapshot, wanted.first, wanted.last, wanted.offload)
        return (*place, plan.numerics, model.task, model.options, self.record.outline.inputs)

    def _load(self, stage: int) -> Loaded:
        # The driver imports this module to build graphs, and must not pay seconds and memory for torch.
        from daskinfer.models.execution.stage import load_stage

        plan, wanted = self.record.plan, self.record.plan.stages[stage]
        began = time.perf_counter()
        loaded = load_stage(
            request=self.request,
            outline=self.record.outline,
            manifest=self.manifest,
            stage=wanted,
            numerics=plan.numerics,
            read=partial(load_tensors, self.record.registry, progress=LoadMeter(self.handle, stage).add),
            scratch=get_folder(),
        )
        return Loaded(loaded, self.manifest.digest, loaded.read_bytes, time.perf_counter() - began)

    @cached_property
    def _registry(self) -> Registry:
        return Registry(self.record.registry)


@dataclass(slots=True)
class _ShardCache:
    """Shards of this process, keyed by what decides their bytes, so that jobs on one snapshot share them."""

    shards: dict[ShardKey, Loaded] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: ShardKey, load: partial[Loaded]) -> Loaded:
        with self.lock:
            if key not in self.shards:
                self.shards[key] = load()
            return self.shards[key]


# A fence is of one epoch, and so is the folder of what a retry writes.
_ContextKey = tuple[str, str, str, int, int, int]
_SHARDS = _ShardCache()
_CONTEXTS: dict[_ContextKey, JobContext] = {}
_CONTEXTS_LOCK = threading.Lock()


def open_context(handle: JobHandle) -> JobContext:
    """Return this process's view of a job and one of its generations.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> handle = JobHandle("work", "opened", 1, finish_job("work", "labels.jsonl", job="opened").first_pin)
    >>> open_context(handle) is open_context(handle)
    True
    >>> forget_job(handle)
    """
    learn(handle.secrets)
    key = _key_of(handle)
    with _CONTEXTS_LOCK:
        if key not in _CONTEXTS:
            # A late task of an earlier epoch may have left its own behind.
            for earlier in [other for other in _CONTEXTS if other[:-1] == key[:-1] and other[-1] < key[-1]]:
                del _CONTEXTS[earlier]
            _CONTEXTS[key] = JobContext(handle)
        return _CONTEXTS[key]


def _key_of(handle: JobHandle) -> _ContextKey:
    return (handle.workspace, handle.job, handle.member, handle.pin.generation, handle.round, handle.epoch)


def forget_job(handle: JobHandle) -> None:
    """Drop a generation's records from this process, and its shards unless something else uses the snapshot.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> handle = JobHandle("work", "forgotten", 1, finish_job("work", "labels.jsonl", job="forgotten").first_pin)
    >>> before = open_context(handle)
    >>> forget_job(handle)
    >>> open_context(handle) is before
    False
    >>> forget_job(handle)
    """
    with _CONTEXTS_LOCK:
        context = _CONTEXTS.pop(_key_of(handle), None)
        still_used = {other.snapshot for other in _CONTEXTS.values()}
    if context is not None and context.snapshot not in still_used:
        with _SHARDS.lock:
            for key in [key for key in _SHARDS.shards if key[0] == context.snapshot]:
                del _SHARDS.shards[key]


def forget_driver(job: str, member: str) -> None:
    """Drop a job's records from this process, of all its generations, and its shards unless something else uses them.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> handle = JobHandle("work", "left", 1, finish_job("work", "labels.jsonl", job="left").first_pin)
    >>> before = open_context(handle)
    >>> forget_driver("left", member="")
    >>> open_context(handle) is before
    False
    >>> forget_driver("left", member="")
    """
    with _CONTEXTS_LOCK:
        keys = [key for key in _CONTEXTS if key[1:3] == (job, member)]
        gone = {_CONTEXTS.pop(key).snapshot for key in keys}
        gone -= {other.snapshot for other in _CONTEXTS.values()}
    with _SHARDS.lock:
        for key in [key for key in _SHARDS.shards if key[0] in gone]:
            del _SHARDS.shards[key]


def forget_shards(handles: Sequence[JobHandle], stage: int | None) -> None:
    """Drop a stage's shards of all these generations from this process; everything of theirs where it is None.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> handle = JobHandle("work", "freed", 1, finish_job("work", "labels.jsonl", job="freed").first_pin)
    >>> before = open_context(handle)
    >>> forget_shards([handle], stage=0)
    >>> open_context(handle) is before
    True
    >>> forget_shards([handle], stage=None)
    """
    for handle in handles:
        if stage is None:
            forget_job(handle)
            continue
        context = open_context(handle)
        with _CONTEXTS_LOCK:
            is_shared = any(key[1] != handle.job and one.snapshot == context.snapshot for key, one in _CONTEXTS.items())
        if not is_shared:
            with _SHARDS.lock:
                _SHARDS.shards.pop(context.shard_key(stage), None)


def open_transports(record: JobRecord, handle: JobHandle) -> tuple[Transport[Any], ...]:
    """Return the transport of every edge of a job's plan, for one generation.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> record = make_job("labels.jsonl")
    >>> plan = record.plan.model_copy(update={"edges": ((),), "transports": ("direct",)})
    >>> handle = JobHandle("work", "demo", 1, record.first_pin)
    >>> [type(transport).__name__ for transport in open_transports(record.model_copy(update={"plan": plan}), handle)]
    ['DirectTransport']
    """
    plan, pin = record.plan, handle.pin
    # Members that share a job must never read or delete each other's.
    folder = join_url(handle.workspace, "activations", record.job, *([handle.member] if handle.member else []))
    opened: list[Transport[Any]] = []
    for index, (kind, tensors) in enumerate(zip(plan.transports, plan.edges, strict=True)):
        edge = Edge(job=record.job, snapshot=pin.snapshot, name=f"{index}-{index + 1}")
        if kind == "direct":
            opened.append(DirectTransport(edge, tensors))
            continue
        url = join_url(folder, f"g{pin.generation:04d}", edge.name)
        # Numbering chunks by partition and microbatch is unique and stays the same for every retry; chunks that are
        # never written cost nothing.
        opened.append(ZarrTransport(url, edge, tensors, *plan.largest, record.partitions * record.slots))
    return tuple(opened)
