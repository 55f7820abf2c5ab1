"""Which job a recipe means: a new one, one to go on with, one that is done, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from daskinfer.errors import CheckpointError, IntegrityError, OutputOwned, RecipeError, UsageError
from daskinfer.graphs.context import make_request
from daskinfer.ids import digest_of, shorten
from daskinfer.models.arrays import count_row_tokens
from daskinfer.models.devices import choose_dtype
from daskinfer.models.entry import confirm_entry
from daskinfer.models.tasks.encode import explain_length, make_encoder, row_length
from daskinfer.models.tasks.fields import takes_text, task_fields, task_wants
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.versions import ATTENTION, versions
from daskinfer.planning.placement import eligible_workers
from daskinfer.planning.plan import make_plan, place_plan
from daskinfer.planning.profile import make_profile
from daskinfer.runtime.checkpoints import resolve_checkpoint
from daskinfer.runtime.keeper import find_candidate
from daskinfer.runtime.outlines import find_outline
from daskinfer.source import digest_source
from daskinfer.spec.job import SNAPSHOT, JobRecord, OutputField, digest_files, make_job_request
from daskinfer.spec.outline import InputArray
from daskinfer.spec.plan import Numerics, Plan, WorkerShape
from daskinfer.spec.recipe import OPERATIONAL, Input, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.spec.snapshot import EntryPoint
from daskinfer.storage.control import ControlLog
from daskinfer.storage.filesystem import delete, refuse_unwritable
from daskinfer.storage.inputs.files import find_input
from daskinfer.storage.inputs.index import index_input
from daskinfer.storage.inputs.overlap import refuse_overlap
from daskinfer.storage.jobs import JobStore, create_job
from daskinfer.storage.outputs.choice import choose_output_format
from daskinfer.storage.outputs.job import check_record, open_fence, open_output, read_generations
from daskinfer.storage.outputs.owner import Owner, claim, current_owner
from daskinfer.storage.outputs.verification import find_missing, reopen_output
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.urls import absolute_url, join_url


@dataclass(frozen=True, slots=True)
class OpenedJob:
    """A job that exists in the workspace and owns its output."""

    store: JobStore
    record: JobRecord
    plan: Plan
    """The recorded plan, placed on today's workers."""
    resumed: bool
    """Whether an earlier run has begun it."""
    done: bool
    """Whether an earlier run has finished it."""


def open_job(recipe: Recipe, workers: Sequence[WorkerShape], fresh: bool) -> OpenedJob:
    """Find the unfinished job that this recipe answers to, or begin a new one.

    An unfinished job of the same recipe, inputs, code and numerics at that output goes on, on the snapshot it is
    locked on, whatever the alias says by now.

    Raises
    ------
    OutputOwned
        The output holds another job's work.
    """
    check_places(recipe)
    if not fresh and (job := find_owner(recipe, workers)) is not None:
        return _reopen(job, recipe, workers) if job.done else job
    output = absolute_url(recipe.output.url)
    owner = current_owner(output)
    if owner is None:
        try:
            return _begin(recipe, workers, None, output)
        except OutputOwned:
            # Another driver began a moment ago: perhaps the same job, which then says that it is being run.
            if not fresh and (job := find_owner(recipe, workers)) is not None:
                return job
            raise
    with _hold_back(recipe, owner):
        return _begin(recipe, workers, owner, output)


def _reopen(job: OpenedJob, recipe: Recipe, workers: Sequence[WorkerShape]) -> OpenedJob:
    """Return a finished job, or where files of its output are gone, the same job with these partitions to compute again."""
    missing = find_missing(job.record)
    if missing == ():
        return job
    lease = job.store.acquire()
    try:
        reopen_output(job.record, missing or (), open_fence(job.record, recipe.workspace, lease.epoch))
        job.store.reopen()
    finally:
        lease.release()
    return replace(job, plan=place_plan(job.record.plan, recipe, workers), done=False)


def find_owner(recipe: Recipe, workers: Sequence[WorkerShape]) -> OpenedJob | None:
    """Return the job that the output belongs to, None where it is free.

    Raises
    ------
    OutputOwned
        It is not the job that the recipe asks for.
    """
    output = absolute_url(recipe.output.url)
    owner = current_owner(output)
    if owner is None:
        return None
    store = JobStore(recipe.workspace, owner.job)
    record = _read_owner_record(store, owner, recipe, output)
    check_record(store, record)
    if absolute_url(record.output) != output:
        if owner.record == store.record_digest():
            raise OutputOwned(
                f"{output} is where job {record.job} did not write it: it was moved or copied from {record.output}",
                hint="Move it back, choose another output.url, or start over with --fresh.",
            )
        raise IntegrityError(
            f"{store.record_place()} names the output {record.output}, but the job owns {output}",
            hint="Put the file back as it was, or start over with --fresh.",
        )
    inputs = digest_files(find_input(absolute_input(recipe)).files)
    numerics = current_numerics(record, recipe, workers)
    is_same = inputs == store.inputs(record)
    if not is_same or make_job_request(recipe, record.inputs, digest_source(), numerics) != owner.request:
        raise _explain_difference(record, recipe, is_same, output)
    if store.state() != "done":
        drained = ControlLog(store.url).drained()
        plan = place_plan(record.plan, recipe, [worker for worker in workers if worker.address not in drained])
        return OpenedJob(store, record, plan, resumed=True, done=False)
    now, last = resolve_checkpoint(recipe), read_generations(record, recipe.workspace).current.snapshot
    if now.snapshot != last:
        raise OutputOwned(
            f"{output} was finished by job {record.job} on snapshot {shorten(last)}, but "
            f"{recipe.model.checkpoint} is {shorten(now.snapshot)} by now",
            hint="Choose another output.url to keep both, or start over with --fresh.",
        )
    return OpenedJob(store, record, record.plan, resumed=True, done=True)


def draft_job(recipe: Recipe, workers: Sequence[WorkerShape]) -> tuple[JobRecord, PartitionTable]:
    """Plan a new job, still without an id, and refuse whatever would stop it later; no job is written.

    Raises
    ------
    DaskinferError
        Input, checkpoint, task, plan or output cannot be as the recipe says.
    """
    resolution = resolve_checkpoint(recipe)
    if recipe.consistency.follows and resolution.alias is None:
        raise RecipeError(
            f"consistency: {recipe.model.checkpoint} is no alias, so there is nothing to follow",
            hint="Name the checkpoint by an alias, such as minilm@prod, or leave consistency.mode on strong.",
        )
    registry = Registry(recipe.registry_url)
    if recipe.consistency.trial is not None:
        find_candidate(registry, recipe, resolution.snapshot)
    manifest = registry.manifest(resolution.snapshot)
    _check_entry(recipe, manifest.entry)
    files = {file.path: registry.file(manifest, file.path) for file in manifest.files}
    wants = find_wants(recipe, make_request(recipe, manifest, files, ()))
    columns = {recipe.input.columns.get(role, role): want for role, want in wants.items()}
    output = choose_output_format(recipe.output.url, recipe.output.format)
    table = index_input(absolute_input(recipe), columns, recipe.output.keep, output)
    arrays = tuple(
        InputArray(name=role, dtype=array.dtype, shape=array.shape)
        for role in wants
        if (array := table.arrays.get(recipe.input.columns.get(role, role))) is not None
    )
    request = make_request(recipe, manifest, files, arrays)
    numerics, precision = _make_numerics(recipe, manifest.dtype, workers, "image" in wants.values())
    is_text = takes_text(request)
    if is_text:  # what can be refused without tracing the model is refused at once
        make_encoder(request, row_length(request))
        task_fields(request, row_length(request))
    outline = find_outline(registry.url, request, numerics.dtype)
    profile = make_profile(
        manifest,
        outline,
        max_length=row_length(request) if is_text else None,
        row_tokens=None if is_text else count_row_tokens(outline.inputs),
    )
    plan = make_plan(recipe, profile, workers, numerics)
    make_encoder(request, plan.max_length)
    inputs = digest_files(table.files)
    has_variants = any(array.name == "position" for array in outline.inputs)
    record = JobRecord(
        job="unnamed",
        request=make_job_request(recipe, inputs, digest_source(), numerics),
        recipe=recipe,
        resolution=resolution,
        registry=absolute_url(recipe.registry_url),
        inputs=inputs,
        code=digest_source(),
        plan=plan,
        outline=outline,
        slots=recipe.input.partition_rows * (plan.max_length if has_variants else 1),
        fields=(*task_fields(request, plan.max_length, outline.outputs), *_provenance_fields(recipe)),
        keep={column: table.columns[column] for column in recipe.output.keep},
        output=absolute_url(recipe.output.url),
        rows=table.rows,
        partitions=len(table.partitions),
        precision=precision,
        length=explain_length(request) if is_text else "",
        left_out=outline.tell_left_out(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    open_output(record, recipe.workspace)  # refuses an unusable output
    return record, table


def current_numerics(record: JobRecord, recipe: Recipe, workers: Sequence[WorkerShape]) -> Numerics:
    """Return what today's workers would compute a job with, in its precision."""
    before = record.plan.numerics
    numerics, _ = _make_numerics(recipe, before.dtype, workers, before.pillow is not None)
    return numerics.model_copy(update={"dtype": before.dtype})


def _begin(recipe: Recipe, workers: Sequence[WorkerShape], owner: Owner | None, output: str) -> OpenedJob:
    """Plan a new job, write it down, and make the output its own."""
    draft, table = draft_job(recipe, workers)
    key = digest_of([draft.resolution.snapshot, draft.request])
    store = create_job(
        recipe.workspace, lambda job: draft.model_copy(update={"job": job}), f"{recipe.name}-{shorten(key, 10)}"
    )
    # The table is there before the job owns its output: whoever finds the owner finds everything.
    store.save_table(table)
    record = store.record()
    try:
        claim(
            output,
            Owner(
                job=record.job,
                request=record.request,
                snapshot=record.resolution.snapshot,
                created=record.created,
                record=store.record_digest(),
            ),
            owner,
        )
    except OutputOwned:
        delete(store.url, recursive=True)  # another began a moment ago, and nothing will ever come of this one
        raise
    return OpenedJob(store, record, record.plan, resumed=False, done=False)


def absolute_input(recipe: Recipe) -> Input:
    """Return the recipe's input as every worker must see it, whatever folder it runs in."""
    url = recipe.input.url
    absolute = absolute_url(url) if isinstance(url, str) else tuple(map(absolute_url, url))
    return recipe.input.model_copy(update={"url": absolute})


def check_places(recipe: Recipe) -> None:
    """Refuse an input that can match what the job writes, and places that it cannot write to; nothing is written yet.

    Raises
    ------
    InputError
        It can match that.
    StorageError
        The workspace or the output cannot be written to.
    """
    workspace = absolute_url(recipe.workspace)
    for place in (workspace, absolute_url(recipe.output.url)):
        refuse_unwritable(place)
    written = {f"workspace ({name}/)": join_url(workspace, name) for name in ("activations", "jobs", "registry")}
    refuse_overlap(recipe.input, {"output.url": recipe.output.url, **written})


def _provenance_fields(recipe: Recipe) -> tuple[OutputField, ...]:
    """Return the column that names every row's snapshot, where there may be several."""
    return (OutputField(name=SNAPSHOT, kind="string"),) if recipe.consistency.may_change else ()


def _check_entry(recipe: Recipe, entry: EntryPoint | None) -> None:
    """Refuse code of the user's own that has changed, or that is not the checkpoint's."""
    wanted = recipe.model.entry
    if wanted is not None and (entry is None or entry.function != wanted):
        raise CheckpointError(
            f"model.entry is {wanted}, but {recipe.model.checkpoint} was published with "
            f"{'none' if entry is None else entry.function}",
            hint="Leave out model.entry, or publish the model with it: daskinfer checkpoint publish NAME --entry "
            f"{wanted}.",
        )
    if entry is not None:
        confirm_entry(entry)


def find_wants(recipe: Recipe, request: TaskRequest) -> dict[str, Literal["text", "image", "array"]]:
    """Return what the task reads, by role; the inputs of `forward` are those that the recipe names."""
    if request.task != "forward":
        return task_wants(request)
    if not recipe.input.columns:
        raise RecipeError(
            "input.columns: the task forward needs the model's inputs by name",
            hint="Write {NAME: COLUMN} for every argument of the model's forward, such as {pixel_values: image}.",
        )
    return dict.fromkeys(recipe.input.columns, "array")


def _make_numerics(recipe: Recipe, stored: str, workers: Sequence[WorkerShape], images: bool) -> tuple[Numerics, str]:
    """Return what the workers compute with, and why in that precision; `stored` is the checkpoint's."""
    able = eligible_workers(workers, recipe.placement.requires)
    # What not all of them have cannot be counted on.
    device = next((worker.device for worker in able if worker.device.kind == "cpu"), able[0].device)
    dtype, precision = choose_dtype(recipe.model.dtype, stored, device)
    numerics = Numerics(
        dtype=dtype,
        device=device.kind,
        attention=ATTENTION,
        threads=min(worker.threads for worker in able),
        **versions(images),
    )
    return numerics, precision


@contextmanager
def _hold_back(recipe: Recipe, owner: Owner) -> Iterator[None]:
    """Hold the lease of an output's former owner, so that it neither runs now nor commits anything from now on.

    Raises
    ------
    JobBusy
        It is running.
    """
    store = JobStore(recipe.workspace, owner.job)
    with ExitStack() as held:
        # One that this workspace does not know cannot be held back; one that is damaged can never go on.
        with suppress(UsageError, IntegrityError):
            store.record()
            held.callback(store.acquire().release)
        yield


def _read_owner_record(store: JobStore, owner: Owner, recipe: Recipe, output: str) -> JobRecord:
    try:
        return store.record()
    except UsageError as error:
        raise OutputOwned(
            f"{output} belongs to job {owner.job}, which workspace {recipe.workspace} does not know",
            hint="Name the workspace it was run in, choose another output.url, or start over with --fresh.",
        ) from error


def _explain_difference(record: JobRecord, recipe: Recipe, same_input: bool, output: str) -> OutputOwned:
    before, now = (
        dict(_flatten(each.model_dump(mode="json", exclude=OPERATIONAL))) for each in (record.recipe, recipe)
    )
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = [f"the recipe ({', '.join(keys)})"] if keys else []
    if not same_input:
        changed.append("an input file")
    if record.code != digest_source():
        changed.append("daskinfer's code")
    what = " and ".join(changed) or "a library that decides numerics"
    have = "have" if len(changed) > 1 else "has"
    mended = (
        f"Were rows mended in place? Then: daskinfer retry {record.job}. Otherwise choose"
        if changed == ["an input file"]
        else "Choose"
    )
    return OutputOwned(
        f"{output} belongs to job {record.job}; {what} {have} changed since, so this is another job",
        hint=f"{mended} another output.url to keep both, or start over with --fresh.",
    )


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
