"""Which job a recipe means: a new one, one to go on with, one that is done, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from daskinfer.errors import OutputOwned, UsageError
from daskinfer.ids import digest_of, shorten
from daskinfer.models.profile import profile_model
from daskinfer.models.tasks import task_fields
from daskinfer.models.versions import versions
from daskinfer.planning.plan import make_plan, place_plan
from daskinfer.runtime.checkpoints import resolve_checkpoint
from daskinfer.source import digest_source
from daskinfer.spec.job import JobRecord, make_request
from daskinfer.spec.plan import Numerics, Plan, WorkerShape
from daskinfer.spec.recipe import Recipe
from daskinfer.storage.filesystem import absolute_url
from daskinfer.storage.inputs import find_input, index_input
from daskinfer.storage.jobs import JobStore, create_job
from daskinfer.storage.outputs import Owner, claim_output, current_owner
from daskinfer.storage.registry import Registry


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
    files = find_input(recipe.input)
    inputs = digest_of([file.model_dump(mode="json") for file in files])
    numerics = _make_numerics(recipe, workers)
    code = digest_source()
    request = make_request(recipe, inputs, code, numerics)
    output = absolute_url(recipe.output.url)
    owner = current_owner(output)
    if owner is not None and not fresh:
        store = JobStore(recipe.workspace, owner.job)
        record = _read_owner_record(store, owner, recipe, output)
        if owner.request != request:
            raise _explain_difference(record, recipe, inputs, code, output)
        if not store.is_done():
            plan = place_plan(record.plan, recipe, record.hidden, workers)
            return OpenedJob(store, record, plan, resumed=True, done=False)
        now = resolve_checkpoint(recipe)
        if now.snapshot != record.resolution.snapshot:
            raise OutputOwned(
                f"{output} was finished by job {record.job} on snapshot {shorten(record.resolution.snapshot)}, but "
                f"{recipe.model.checkpoint} is {shorten(now.snapshot)} by now",
                hint="Choose another output.url to keep both, or start over with --fresh.",
            )
        return OpenedJob(store, record, record.plan, resumed=True, done=True)

    resolution = resolve_checkpoint(recipe)
    registry = Registry(recipe.registry_url)
    manifest = registry.manifest(resolution.snapshot)
    config = json.loads(registry.file(manifest, "config.json"))
    profile = profile_model(manifest, config, recipe.model.task, numerics.dtype)
    plan = make_plan(recipe, profile, workers, numerics)
    table = index_input(recipe.input, recipe.output.keep, files)

    def describe(job: str) -> JobRecord:
        return JobRecord(
            job=job,
            request=request,
            recipe=recipe,
            resolution=resolution,
            registry=absolute_url(recipe.registry_url),
            inputs=inputs,
            code=code,
            plan=plan,
            hidden=profile.hidden,
            fields=task_fields(recipe.model.task, config, recipe.model.options),
            output=output,
            rows=table.rows,
            partitions=len(table.partitions),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    key = digest_of([resolution.snapshot, request])
    store = create_job(recipe.workspace, describe, f"{recipe.name}-{shorten(key, 10)}")
    # The table is there before the job owns its output: whoever finds the owner finds everything.
    store.save_table(table)
    record = store.record()
    claim_output(
        output, Owner(job=record.job, request=request, snapshot=resolution.snapshot, created=record.created), owner
    )
    return OpenedJob(store, record, plan, resumed=False, done=False)


def _make_numerics(recipe: Recipe, workers: Sequence[WorkerShape]) -> Numerics:
    wanted = recipe.model.dtype
    return Numerics(
        dtype="float32" if wanted == "auto" else wanted,
        attention="sdpa",
        threads=recipe.cluster.workers.threads if recipe.cluster.address is None else min(w.threads for w in workers),
        **versions(),
    )


def _read_owner_record(store: JobStore, owner: Owner, recipe: Recipe, output: str) -> JobRecord:
    try:
        return store.record()
    except UsageError as error:
        raise OutputOwned(
            f"{output} belongs to job {owner.job}, which workspace {recipe.workspace} does not know",
            hint="Name the workspace it was run in, choose another output.url, or start over with --fresh.",
        ) from error


def _explain_difference(record: JobRecord, recipe: Recipe, inputs: str, code: str, output: str) -> OutputOwned:
    changed = [
        name
        for name, before, now in (
            ("the recipe", record.recipe.digest, recipe.digest),
            ("an input file", record.inputs, inputs),
            ("daskinfer's code", record.code, code),
        )
        if before != now
    ]
    what = " and ".join(changed) or "a library that decides numerics"
    return OutputOwned(
        f"{output} belongs to job {record.job}; {what} has changed since, so this is another job",
        hint="Choose another output.url to keep both, or start over with --fresh.",
    )
