"""Which job a recipe means: a new one, one to go on with, one that is done, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from daskinfer.errors import IntegrityError, OutputOwned, UsageError
from daskinfer.ids import digest_of, shorten
from daskinfer.planning.plan import place_plan
from daskinfer.runtime.jobs.job_planner import plan_job
from daskinfer.runtime.jobs.request_resolution import absolute_input, current_numerics, resolve_request
from daskinfer.runtime.snapshots.checkpoint_publisher import resolve_checkpoint
from daskinfer.source import digest_source
from daskinfer.spec.job.record import JobRecord, digest_files, make_job_request
from daskinfer.spec.plan import Plan, WorkerShape
from daskinfer.spec.recipe.schema import OPERATIONAL, Recipe
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.files import find_input
from daskinfer.storage.inputs.overlap import refuse_overlap
from daskinfer.storage.jobs.control_log import ControlLog
from daskinfer.storage.jobs.store import JobStore, create_job
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.local_files import refuse_unwritable
from daskinfer.storage.objects.store_check import confirm_conditions
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.job_output import check_record, open_fence, open_output, read_generations
from daskinfer.storage.outputs.owner import Owner, claim, current_owner
from daskinfer.storage.outputs.verification import find_missing, reopen_output


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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> open_job(make_job("labels.jsonl").recipe, [make_worker("a")], fresh=False)
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: no checkpoint is named 'tiny' in registry ...
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

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> find_owner(make_job("labels.jsonl").recipe, workers=[]) is None
    True
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
                hint="Move it back, choose another output.url, or start over: daskinfer run RECIPE --fresh.",
            )
        raise IntegrityError(
            f"{store.record_place()} names the output {record.output}, but the job owns {output}",
            hint="Put the file back as it was, or start over: daskinfer run RECIPE --fresh.",
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
            hint="Choose another output.url to keep both, or start over: daskinfer run RECIPE --fresh.",
        )
    return OpenedJob(store, record, record.plan, resumed=True, done=True)


def reopen_job(store: JobStore, recipe: Recipe, workers: Sequence[WorkerShape]) -> OpenedJob:
    """Return a job that is done, to compute some of its rows again as it would have computed them.

    Raises
    ------
    UsageError
        With today's code, libraries or workers the rows would come out otherwise than those beside them.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> record = finish_job("work", "labels.jsonl")
    >>> reopen_job(JobStore("work", "demo"), record.recipe, [make_worker("a")])
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: job demo was computed with other settings than its rows would be now: ...
    """
    record = store.record()
    now, then = (
        numerics.model_dump(mode="json", exclude={"threads", "kernels"})
        for numerics in (current_numerics(record, recipe, workers), record.plan.numerics)
    )
    changed = [f"{key} is {now[key]}, was {then[key]}" for key in then if now[key] != then[key]]
    if record.code != digest_source():
        changed.insert(0, "daskinfer's code is another one")
    if changed:
        raise UsageError(
            f"job {record.job} was computed with other settings than its rows would be now: {'; '.join(changed)}",
            hint="Make the output again: daskinfer run RECIPE --fresh",
        )
    return OpenedJob(store, record, place_plan(record.plan, recipe, workers), resumed=True, done=True)


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
                table=store.table_digest(),
            ),
            owner,
        )
    except OutputOwned:
        delete(store.url, recursive=True)  # another began a moment ago, and nothing will ever come of this one
        raise
    return OpenedJob(store, record, record.plan, resumed=False, done=False)


def draft_job(recipe: Recipe, workers: Sequence[WorkerShape]) -> tuple[JobRecord, PartitionTable]:
    """Plan a new job, still without an id, and refuse whatever would stop it later; no job is written.

    Raises
    ------
    DaskinferError
        Input, checkpoint, task, plan or output cannot be as the recipe says.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> from daskinfer.testing.fixtures.plans import make_worker
    >>> draft_job(make_job("labels.jsonl").recipe, [make_worker("a")])
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: no checkpoint is named 'tiny' in registry ...
    """
    resolved = resolve_request(recipe, workers)
    record = plan_job(resolved, workers, datetime.now(UTC).isoformat(timespec="seconds"))
    open_output(record, recipe.workspace)  # refuses an unusable output
    for url in dict.fromkeys((recipe.workspace, recipe.output.url)):
        confirm_conditions(absolute_url(url))
    return record, resolved.table


def check_places(recipe: Recipe) -> None:
    """Refuse an input that can match what the job writes, and places that it cannot write to; nothing is written yet.

    Raises
    ------
    InputError
        It can match that.
    StorageError
        The workspace or the output cannot be written to.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> recipe = make_job("labels.jsonl").recipe
    >>> check_places(recipe)
    >>> check_places(recipe.model_copy(update={"input": recipe.input.model_copy(update={"url": "labels.jsonl/*"})}))
    Traceback (most recent call last):
        ...
    daskinfer.errors.InputError: ...
    """
    workspace = absolute_url(recipe.workspace)
    for place in (workspace, absolute_url(recipe.output.url)):
        refuse_unwritable(place)
    written = {f"workspace ({name}/)": join_url(workspace, name) for name in ("activations", "jobs", "registry")}
    refuse_overlap(recipe.input, {"output.url": recipe.output.url, **written})


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
            hint="Name the workspace it was run in, choose another output.url, or start over: daskinfer run RECIPE --fresh.",
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
    corrected = (
        f"Were rows corrected in place? Then: daskinfer retry {record.job}. Otherwise choose"
        if changed == ["an input file"]
        else "Choose"
    )
    return OutputOwned(
        f"{output} belongs to job {record.job}; {what} {have} changed since, so this is another job",
        hint=f"{corrected} another output.url to keep both, or start over: daskinfer run RECIPE --fresh.",
    )


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
