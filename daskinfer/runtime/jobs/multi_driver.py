"""Several drivers on one job: how one of them comes and goes."""

from __future__ import annotations

import time

from daskinfer.errors import IntegrityError, JobBusy, UsageError
from daskinfer.graphs.handoff import JobHandle
from daskinfer.planning.blocks import cut_blocks
from daskinfer.runtime.driver.claim_store import ClaimStore
from daskinfer.runtime.jobs.job_resolution import OpenedJob
from daskinfer.spec.job.record import JobRecord
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.jobs.lease import read_driver
from daskinfer.storage.jobs.membership import Membership, Watch, list_members, seems_alive
from daskinfer.storage.jobs.partition_claims import ClaimLog
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects.filesystem import delete, list_names
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.job_output import open_output, read_generations
from daskinfer.storage.outputs.owner import former_owners
from daskinfer.storage.outputs.sink import WholeOutput
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry

_LOOK_SECONDS = 0.2


def refuse_changes(recipe: Recipe) -> None:
    """Refuse a recipe whose job several drivers cannot share.

    Raises
    ------
    UsageError
        Its snapshot may change, or is compared with another, which one driver has to decide.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import Consistency, Trial
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> recipe = make_job("labels.jsonl").recipe
    >>> refuse_changes(recipe)
    >>> refuse_changes(recipe.model_copy(update={"consistency": Consistency(shadow=Trial(checkpoint="tiny@v2"))}))
    Traceback (most recent call last):
        ...
    daskinfer.errors.UsageError: --join cannot be had with consistency shadow: ...
    """
    rules = recipe.consistency
    if rules.may_change or rules.trial is not None:
        what = next(name for name in ("upgrade", "canary", "shadow", "mode") if getattr(rules, name))
        value = rules.mode if what == "mode" else what
        raise UsageError(
            f"--join cannot be had with consistency {value}: members of a job share one snapshot from its first row to "
            "its last",
            hint="Run it without --join, or leave consistency on strong.",
        )


def join_job(job: OpenedJob, workspace: str) -> Membership:
    """Become a member of a job, once its output holds nothing of a former owner.

    Raises
    ------
    JobBusy
        A driver runs it alone.

    Examples
    --------
    >>> from daskinfer.runtime.jobs.job_resolution import OpenedJob
    >>> from daskinfer.storage.jobs.store import create_job
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> store = create_job("work", lambda name: make_job("labels.jsonl", job=name), "demo")
    >>> member = join_job(OpenedJob(store, store.record(), store.record().plan, resumed=False, done=False), "work")
    >>> [each.member for each in list_members(store.url)] == [member.member]
    True
    >>> member.release()
    """
    store = job.store
    while not store.is_cleared():
        try:
            lease = store.acquire(mode="opening")
        except JobBusy:
            newest = read_driver(store.url)
            if newest is not None and newest[1].mode == "alone":
                raise
            time.sleep(_LOOK_SECONDS)  # another is about to do it
            continue
        try:
            sink = open_output(job.record, workspace, epoch=lease.epoch)
            clear_output(store, job.record, sink, workspace)
        finally:
            lease.release()
    return store.join()


def clear_output(store: JobStore, record: JobRecord, sink: WholeOutput, workspace: str) -> None:
    """Discard what a job's output holds of its former owners, and create it, while nobody else runs the job.

    Examples
    --------
    >>> from daskinfer.storage.jobs.store import create_job
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> store = create_job("work", lambda name: make_job("labels.jsonl", job=name), "demo")
    >>> lease = store.acquire()
    >>> clear_output(store, store.record(), open_output(store.record(), "work", epoch=lease.epoch), "work")
    >>> lease.release()
    >>> store.is_cleared()
    True
    """
    if not store.is_cleared():
        sink.discard()
        for job in former_owners(record.output, record.job):
            _retire(JobStore(workspace, job), record.job, workspace)
        sink.create()
        store.mark_cleared()


def _retire(former: JobStore, successor: str, workspace: str) -> None:
    """Note that a job can never go on, and release the snapshots that it holds."""
    try:
        record = former.record()
    except UsageError:  # of another workspace: what it holds, garbage collection there finds dead
        return
    except IntegrityError:  # what it holds, nobody can tell
        former.mark_replaced(successor)
        return
    former.mark_replaced(successor)
    registry = Registry(record.registry)
    for snapshot in {record.resolution.snapshot, *(pin.snapshot for pin in read_generations(record, workspace).pins)}:
        locks.remove(registry, snapshot, record.job)


def make_claim_store(membership: Membership, store: JobStore, record: JobRecord, sink: WholeOutput) -> ClaimStore:
    """Return a member's hand in storage.

    Examples
    --------
    >>> from daskinfer.runtime.protocol.actions import ClaimBlocks
    >>> from daskinfer.storage.jobs.store import create_job
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> store = create_job("work", lambda name: make_job("labels.jsonl", job=name), "demo")
    >>> sink, member = open_output(store.record(), "work", epoch=1), store.join()
    >>> make_claim_store(member, store, store.record(), sink).claim(ClaimBlocks(is_wanted=True)).partitions
    (0,)
    >>> member.release()
    """
    log = ClaimLog(store.url, membership.epoch)
    return ClaimStore(membership.member, log, cut_blocks(record), sink, Watch(store.url))


def clear_activations(store: JobStore, handle: JobHandle) -> None:
    """Delete what activations a job has left, but those of other members that live: they do so themselves.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record, folder = finish_job("work", "labels.jsonl"), Path("work/activations/demo")
    >>> folder.mkdir(parents=True)
    >>> clear_activations(JobStore("work", "demo"), JobHandle("work", "demo", 1, record.first_pin))
    >>> folder.exists()
    False
    """
    whole = join_url(handle.workspace, "activations", handle.job)
    living = {member.member for member in list_members(store.url) if seems_alive(member)} - {handle.member}
    if not living:
        delete(whole, recursive=True)
        return
    for name in list_names(whole):
        if name not in living:
            delete(join_url(whole, name), recursive=True)
