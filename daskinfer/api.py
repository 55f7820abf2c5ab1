"""run, validate, inspect: the one place that wires the floors together.

A notebook and an Airflow task call the same functions as the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

from daskinfer.errors import JobFailed, OutputOwned
from daskinfer.graphs.context import open_job_sink
from daskinfer.reports.page import render_html
from daskinfer.runtime.checkpoints import publish_checkpoint
from daskinfer.runtime.cluster import find_workers
from daskinfer.runtime.opening import draft_job, find_owner, open_job
from daskinfer.runtime.outlines import trace_usual_task
from daskinfer.runtime.profiles import profile_checkpoint
from daskinfer.runtime.session import Session
from daskinfer.runtime.summary import make_report
from daskinfer.spec.job import JobRecord, JobStatus, Progress, Report
from daskinfer.spec.listing import AliasRow, CheckpointDetail, CheckpointRow, VersionRow
from daskinfer.spec.measured import CheckpointProfile
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe import Model, ModelOptions, Recipe
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage import jobs as job_store
from daskinfer.storage.outputs.owner import current_owner
from daskinfer.storage.publishing import Watch
from daskinfer.storage.registry import Registry


def run(
    recipe: Recipe, *, fresh: bool = False, watch: Callable[[Progress], None] | None = None, command: str = ""
) -> Report:
    """Run a recipe to its end, going on with an unfinished job where there is one.

    Parameters
    ----------
    recipe
        What to run.
    fresh
        Start over, whatever the output holds.
    watch
        Called with the progress, a few times a second.
    command
        What the user typed; the report names it as the way to run or resume the job.

    Returns
    -------
    Report
        What was done; at once, where the job is finished already.

    Raises
    ------
    DaskinferError
        Its class says why the run stopped, `exit_code` what a command should end with. Everything committed stays,
        and a report is written.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    tell = watch or (lambda progress: None)
    tell(Progress(phase="preparing"))
    job = open_job(recipe, find_workers(recipe.cluster), fresh)
    if job.done and (report := job.store.report()) is not None:
        return report
    session = Session(job, recipe, tell, began)
    session.run()
    report = make_report(session, command, time.monotonic() - began, started)
    job.store.save_report(report, render_html(report))
    if session.error is not None:
        raise session.error
    job.store.finish()
    return report


def validate(recipe: Recipe) -> list[str]:
    """Check a recipe against the world without running it: input, checkpoint, task, workers, output.

    Returns
    -------
    list of str
        What was found, a line each.

    Raises
    ------
    DaskinferError
        Whatever would stop the run before it begins.
    """
    workers = find_workers(recipe.cluster)
    draft, table = draft_job(recipe, workers)
    current_owner(draft.output)  # refuses files of strangers
    resolution, plan = draft.resolution, draft.plan
    cut = f"{plan.stages[-1].last} layers in {len(plan.stages)} stage(s) on {sum(plan.replicas)} worker(s)"
    has_texts = any(None in array.shape for array in draft.outline.inputs)
    longest = f", texts of at most {plan.max_length} tokens" if has_texts else ""
    written = ", ".join(f"{field.name} {field.kind}{list(field.shape) or ''}" for field in draft.fields)
    lines = [
        f"input: {table.rows:,} rows of {table.format} in {len(table.files)} file(s), {len(table.partitions):,} partitions",
        f"checkpoint: {resolution.reference} is {resolution.snapshot}",
        f"plan: {cut}, {plan.numerics.dtype}{longest}",
        f"precision: {draft.precision}",
        f"output: {written}{''.join(f', {name}' for name in recipe.output.keep)}",
    ]
    try:
        owner = find_owner(recipe, workers)
    except OutputOwned as error:  # --fresh may be what the user has in mind
        return [*lines, f"in the way: {error.message}"]
    if owner is not None:
        lines.append(f"job: {owner.record.job} {'is done already' if owner.done else 'would go on'}")
    return lines


def status(job: str, workspace: str) -> JobStatus:
    """Return how a job stands, from storage alone; `job` may be the beginning of an id."""
    return job_store.status(workspace, job, _committed)


def jobs(workspace: str) -> list[JobStatus]:
    """Return how all jobs of a workspace stand, the newest first."""
    return [status(name, workspace) for name in job_store.list_jobs(workspace)]


def report(job: str, workspace: str) -> Report:
    """Return what a job's last run did.

    Raises
    ------
    JobFailed
        No run of it has ended yet.
    """
    store = job_store.find_job(workspace, job)
    found = store.report()
    if found is None:
        raise JobFailed(
            f"no run of job {store.job} has ended, so there is no report", hint=f"Look: daskinfer status {store.job}"
        )
    return found


def publish(
    name: str,
    source: str | None = None,
    *,
    registry: str,
    alias: str | None = None,
    entry: str | None = None,
    dtype: str | None = None,
    reference: bool = False,
    trust_code: bool = False,
    watch: Watch | None = None,
) -> Resolution:
    """Publish a checkpoint, and point an alias at it; the same content is stored once.

    Parameters
    ----------
    name
        Model name.
    source
        A directory, an fsspec URL of one, or a published checkpoint (`minilm@v1`). Without it the entry's own weights
        are published.
    registry
        URL of the registry.
    alias
        Alias to point at it.
    entry
        `package.module:function` that builds a model of your own.
    dtype
        Convert floating-point tensors to float32, bfloat16 or float16.
    reference
        Copy nothing that needs no conversion: the snapshot refers to the directory's own files.
    trust_code
        Publish the code that comes with the checkpoint with it, and run it.
    watch
        Called with what is being done, and how many of how many bytes are done.

    Raises
    ------
    CheckpointError
        It cannot be published, or a name is not allowed.
    """
    found = Registry(registry)
    resolution = publish_checkpoint(
        found,
        name,
        source,
        alias=alias,
        entry=entry,
        dtype=dtype,
        reference=reference,
        trust_code=trust_code,
        watch=watch,
    )
    trace_usual_task(found, resolution)
    return resolution


def checkpoints(registry: str) -> list[CheckpointRow]:
    """Return all checkpoints of a registry, a row each."""
    found = Registry(registry)
    return [
        CheckpointRow(name=name, versions=len(versions), latest=versions[-1], aliases=_aliases(found, name))
        for name in found.names()
        if (versions := _versions(found, name))
    ]


def checkpoint(reference: str, registry: str) -> CheckpointDetail:
    """Return what a checkpoint reference means, and what goes by its name."""
    found = Registry(registry)
    resolution = found.resolve(reference)
    manifest = found.manifest(resolution.snapshot)
    return CheckpointDetail(
        resolution=resolution,
        architecture=manifest.architecture,
        dtype=manifest.dtype,
        size=sum(file.size for file in manifest.files) + sum(group.size for group in manifest.groups),
        groups={group.name: group.size for group in manifest.groups},
        files=tuple(file.path for file in manifest.files),
        provenance=manifest.provenance,
        versions=_versions(found, resolution.name),
        aliases=_aliases(found, resolution.name),
    )


def set_alias(name: str, alias: str, target: str, *, registry: str) -> Resolution:
    """Point an alias at `v3`, `sha256:...` or where another alias points; running jobs keep their snapshot."""
    found = Registry(registry)
    found.set_alias(name, alias, target)
    return found.resolve(f"{name}@{alias}")


def profile(
    checkpoint: str,
    *,
    registry: str,
    task: Literal["embed", "classify", "score", "forward"] = "embed",
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
    options: ModelOptions | None = None,
    entry: str | None = None,
    trust_code: bool = False,
    inputs: Sequence[InputArray] = (),
    threads: int | None = None,
    measure: bool = True,
    fresh: bool = False,
    watch: Watch | None = None,
) -> CheckpointProfile:
    """Count what every layer of a checkpoint costs, and measure it on this machine's device.

    Parameters
    ----------
    checkpoint
        `minilm@prod`, or a directory or the URL of one, which is published on its first use.
    registry
        URL of the registry; measurements are kept there.
    task, dtype, options, entry, trust_code
        As in a recipe's `model`.
    inputs
        `forward`: the arrays that the model's forward takes.
    threads
        Cores to measure with; by default all that this process has.
    measure
        Whether to measure; without it nothing of the weights is read.
    fresh
        Measure again what was measured before.
    watch
        Called with what is being done, and how much of how much is done.

    Raises
    ------
    DaskinferError
        There is no such checkpoint, or it cannot do the task.
    """
    model = Model(
        checkpoint=checkpoint,
        task=task,
        dtype=dtype,
        options=options or ModelOptions(),
        entry=entry,
        trust_code=trust_code,
    )
    return profile_checkpoint(
        Registry(registry),
        model,
        inputs,
        threads=threads,
        measure=measure,
        fresh=fresh,
        watch=watch or (lambda doing, done, total: None),
    )


def _committed(record: JobRecord) -> set[int]:
    return {commit.partition for commit in open_job_sink(record).committed()}


def _versions(registry: Registry, name: str) -> tuple[VersionRow, ...]:
    return tuple(VersionRow(number=found.number, snapshot=found.snapshot) for found in registry.versions(name))


def _aliases(registry: Registry, name: str) -> tuple[AliasRow, ...]:
    return tuple(
        AliasRow(name=alias, snapshot=head.snapshot, version=head.version)
        for alias, head in sorted(registry.aliases(name).items())
    )
