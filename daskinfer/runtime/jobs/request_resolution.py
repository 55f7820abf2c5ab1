"""What a recipe stands for: its checkpoint, input and numerics, looked up and refused where they cannot be as it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.graphs.task_request import load_task_request
from daskinfer.models.entry import confirm_entry
from daskinfer.models.execution.devices import choose_dtype
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import make_encoder, row_length
from daskinfer.models.tasks.fields import takes_text, task_fields, task_wants
from daskinfer.models.versions import ATTENTION, versions
from daskinfer.planning.placement import eligible_workers
from daskinfer.runtime.jobs.job_planner import ResolvedRequest
from daskinfer.runtime.snapshots.checkpoint_publisher import resolve_checkpoint
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.runtime.snapshots.snapshot_manager import find_candidate
from daskinfer.source import digest_source
from daskinfer.spec.job.record import JobRecord
from daskinfer.spec.kernels import choose_kernels
from daskinfer.spec.outline import InputArray
from daskinfer.spec.plan import Numerics, WorkerShape
from daskinfer.spec.recipe.schema import Input, Recipe
from daskinfer.spec.snapshot import EntryPoint
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.objects.urls import absolute_url
from daskinfer.storage.outputs.formats import choose_output_format
from daskinfer.storage.registry.catalog import Registry


def resolve_request(recipe: Recipe, workers: Sequence[WorkerShape]) -> ResolvedRequest:
    """Look up everything that a recipe names; nothing is written but what is published.

    Raises
    ------
    DaskinferError
        Input, checkpoint or task cannot be as the recipe says.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> resolve_request(make_job("labels.jsonl").recipe, [make_worker("a")])
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: no checkpoint is named 'tiny' in registry ...
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
    request = load_task_request(registry, recipe.model, manifest)
    wants = find_wants(recipe, request)
    columns = {recipe.input.columns.get(role, role): want for role, want in wants.items()}
    output = choose_output_format(recipe.output.url, recipe.output.format)
    table = index_input(absolute_input(recipe), columns, recipe.output.keep, output)
    arrays = tuple(
        InputArray(name=role, dtype=array.dtype, shape=array.shape)
        for role in wants
        if (array := table.arrays.get(recipe.input.columns.get(role, role))) is not None
    )
    request = request.with_arrays(arrays)
    numerics, precision, kernels = _make_numerics(recipe, manifest.dtype, workers, "image" in wants.values())
    # What can be refused without tracing the model is refused at once.
    length = row_length(request) if takes_text(request) else 0
    make_encoder(request, length)
    if length:
        task_fields(request, length)
    outline = find_outline(registry.url, request, numerics.dtype)
    return ResolvedRequest(
        recipe=recipe,
        registry=absolute_url(recipe.registry_url),
        output=absolute_url(recipe.output.url),
        resolution=resolution,
        manifest=manifest,
        request=request,
        outline=outline,
        table=table,
        numerics=numerics,
        precision=precision,
        kernels=kernels,
        code=digest_source(),
    )


def current_numerics(record: JobRecord, recipe: Recipe, workers: Sequence[WorkerShape]) -> Numerics:
    """Return what today's workers would compute a job with, in its precision and with its kernels.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> record = make_job("labels.jsonl")
    >>> numerics = current_numerics(record, record.recipe, [make_worker("a")])
    >>> numerics.dtype, numerics.device, numerics.threads
    ('float32', 'cpu', 1)
    """
    before = record.plan.numerics
    numerics, _, _ = _make_numerics(recipe, before.dtype, workers, before.pillow is not None)
    return numerics.model_copy(update={"dtype": before.dtype, "kernels": before.kernels})


def absolute_input(recipe: Recipe) -> Input:
    """Return the recipe's input as every worker must see it, whatever folder it runs in.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> Path(absolute_input(make_job("labels.jsonl").recipe).url) == Path("rows.jsonl").absolute()
    True
    """
    url = recipe.input.url
    absolute = absolute_url(url) if isinstance(url, str) else tuple(map(absolute_url, url))
    return recipe.input.model_copy(update={"url": absolute})


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
    """Return what the task reads, by role; the inputs of `forward` are those that the recipe names.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import Input, Model, ModelOptions, Output
    >>> model, rows = Model(checkpoint="own@v1", task="forward"), Input(url="in.zarr", columns={"features": "x"})
    >>> recipe = Recipe(daskinfer=1, name="demo", model=model, input=rows, output=Output(url="out.zarr"))
    >>> find_wants(recipe, TaskRequest("forward", ModelOptions(), "OwnModel", {}))
    {'features': 'array'}
    """
    if request.task != "forward":
        return task_wants(request)
    if not recipe.input.columns:
        raise RecipeError(
            "input.columns: the task forward needs the model's inputs by name",
            hint="Write {NAME: COLUMN} for every argument of the model's forward, such as {pixel_values: image}.",
        )
    return dict.fromkeys(recipe.input.columns, "array")


def _make_numerics(
    recipe: Recipe, stored: str, workers: Sequence[WorkerShape], images: bool
) -> tuple[Numerics, str, str]:
    """Return what the workers compute with, why in that precision, and why by those kernels; `stored` is the checkpoint's."""
    able = eligible_workers(workers, recipe.placement.requires)
    # What not all of them have cannot be counted on.
    device = next((worker.device for worker in able if worker.device.kind == "cpu"), able[0].device)
    dtype, precision = choose_dtype(recipe.model.dtype, stored, device)
    speeds = [worker.device.onednn for worker in able]
    linear, kernels = choose_kernels(recipe.model.kernels, dtype, device.kind, speeds)
    numerics = Numerics(
        dtype=dtype,
        device=device.kind,
        attention=ATTENTION,
        kernels=linear,
        threads=min(worker.threads for worker in able),
        **versions(images),
    )
    return numerics, precision, kernels
