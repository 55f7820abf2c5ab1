"""From a request that was resolved to the record of a job: its plan, numerics and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.models.entry import confirm_entry
from daskinfer.models.execution.devices import choose_dtype
from daskinfer.models.preprocessing.arrays import count_row_tokens
from daskinfer.models.request import TaskRequest, make_request
from daskinfer.models.tasks.encode import explain_length, make_encoder, row_length
from daskinfer.models.tasks.fields import takes_text, task_fields, task_wants
from daskinfer.models.versions import ATTENTION, versions
from daskinfer.planning.placement import eligible_workers
from daskinfer.planning.plan import make_plan
from daskinfer.planning.profile import make_profile
from daskinfer.runtime.snapshots.checkpoint_publisher import resolve_checkpoint
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.runtime.snapshots.snapshot_manager import find_candidate
from daskinfer.source import digest_source
from daskinfer.spec.job.record import SNAPSHOT, JobRecord, OutputField, digest_files, make_job_request
from daskinfer.spec.outline import InputArray
from daskinfer.spec.plan import Numerics, WorkerShape
from daskinfer.spec.recipe.schema import Input, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.spec.snapshot import EntryPoint
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.objects.urls import absolute_url
from daskinfer.storage.outputs.formats import choose_output_format
from daskinfer.storage.outputs.job_output import open_output
from daskinfer.storage.registry.catalog import Registry


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


def absolute_input(recipe: Recipe) -> Input:
    """Return the recipe's input as every worker must see it, whatever folder it runs in."""
    url = recipe.input.url
    absolute = absolute_url(url) if isinstance(url, str) else tuple(map(absolute_url, url))
    return recipe.input.model_copy(update={"url": absolute})


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
