"""From a request that was resolved to the record of a job: its plan, numerics and outputs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daskinfer.models.preprocessing.arrays import count_row_tokens
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import explain_length, row_length
from daskinfer.models.tasks.fields import takes_text, task_fields
from daskinfer.planning.plan import make_plan
from daskinfer.planning.profile import make_profile
from daskinfer.spec.job.record import SNAPSHOT, JobRecord, OutputField, digest_files, make_job_request
from daskinfer.spec.outline import Outline
from daskinfer.spec.plan import Numerics, WorkerShape
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.spec.snapshot import Manifest, Resolution


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """What a recipe stands for, once everything that it names was looked at."""

    recipe: Recipe
    registry: str
    """Absolute URL."""
    output: str
    """Absolute URL."""
    resolution: Resolution
    """The snapshot."""
    manifest: Manifest
    """The snapshot's."""
    request: TaskRequest
    """What is asked of it."""
    outline: Outline
    """Its layers."""
    table: PartitionTable
    """The input, cut into partitions."""
    numerics: Numerics
    """What the workers compute with."""
    precision: str
    """Why in that precision."""
    kernels: str
    """What computes linear layers, and why; empty where there was no choice."""
    code: str
    """Digest of daskinfer's source."""


def plan_job(resolved: ResolvedRequest, workers: Sequence[WorkerShape], created: str) -> JobRecord:
    """Return the record of a new job, still without an id.

    Parameters
    ----------
    resolved
        What the recipe stands for.
    workers
        All workers of the cluster, with or without the required tags.
    created
        ISO 8601, UTC.

    Raises
    ------
    PlanError
        Nothing that the recipe allows would fit.

    Examples
    --------
    >>> from pathlib import Path
    >>> from unittest.mock import Mock, patch
    >>> from daskinfer.storage.inputs.partition_table import index_input
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> record, names = make_job("labels.jsonl"), ("recipe", "registry", "output", "resolution", "outline", "code")
    >>> _ = Path("rows.jsonl").write_text('{"text": "river"}')
    >>> found = {name: getattr(record, name) for name in names}
    >>> found["request"] = TaskRequest("forward", record.recipe.model.options, "TestModel", {})
    >>> found["table"], found["numerics"] = index_input(record.recipe.input, {"text": "text"}), record.plan.numerics
    >>> planned = {"make_plan": Mock(return_value=record.plan), "task_fields": Mock(return_value=record.fields)}
    >>> with patch.multiple(__name__, make_profile=Mock(), **planned):
    ...     plan_job(ResolvedRequest(manifest=None, precision="", kernels="", **found), [], record.created).rows
    1
    """
    recipe, request, outline, table = resolved.recipe, resolved.request, resolved.outline, resolved.table
    is_text = takes_text(request)
    profile = make_profile(
        resolved.manifest,
        outline,
        max_length=row_length(request) if is_text else None,
        row_tokens=None if is_text else count_row_tokens(outline.inputs),
    )
    plan = make_plan(recipe, profile, workers, resolved.numerics)
    inputs = digest_files(table.files)
    has_variants = any(array.name == "position" for array in outline.inputs)
    return JobRecord(
        job="unnamed",
        request=make_job_request(recipe, inputs, resolved.code, resolved.numerics),
        recipe=recipe,
        resolution=resolved.resolution,
        registry=resolved.registry,
        inputs=inputs,
        code=resolved.code,
        plan=plan,
        outline=outline,
        slots=recipe.input.partition_rows * (plan.max_length if has_variants else 1),
        fields=(*task_fields(request, plan.max_length, outline.outputs), *_provenance_fields(recipe)),
        keep={column: table.columns[column] for column in recipe.output.keep},
        output=resolved.output,
        rows=table.rows,
        partitions=len(table.partitions),
        precision=resolved.precision,
        kernels=resolved.kernels,
        length=explain_length(request) if is_text else "",
        left_out=outline.tell_left_out(),
        created=created,
    )


def _provenance_fields(recipe: Recipe) -> tuple[OutputField, ...]:
    """Return the column that names every row's snapshot, where there may be several."""
    return (OutputField(name=SNAPSHOT, kind="string"),) if recipe.consistency.may_change else ()
