"""Whether a finished output is still what its manifest says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.record import JobRecord
from daskinfer.spec.verification import DamagedPart, OutputVerification
from daskinfer.storage.objects.filesystem import find_files, list_names
from daskinfer.storage.objects.store_errors import NotOurs
from daskinfer.storage.objects.urls import absolute_url, join_url
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.formats import choose_output_format, make_sink
from daskinfer.storage.outputs.manifest import name_rejects, read_manifest
from daskinfer.storage.outputs.places import MANIFEST, QUARANTINE, RECORDS, RETRIES
from daskinfer.storage.outputs.reading import SealedOutput, SealedPart, open_output


def find_missing(record: JobRecord) -> tuple[int, ...] | None:
    """Return the partitions of a finished output whose files are gone; no file is opened but the manifest.

    Returns
    -------
    tuple of int or None
        Empty where all is there; None where the manifest is.

    Raises
    ------
    IntegrityError
        The manifest is another job's.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> Path("labels.jsonl/part-00000001.jsonl").unlink()
    >>> find_missing(record)
    (1,)
    """
    url = absolute_url(record.output)
    manifest = read_manifest(url)
    if manifest is None:
        return None
    sealed, there = _open(record, url), find_files(url)
    return tuple(
        part.partition for part in sealed.parts if any(path not in there for path in _files_of(record, sealed, part))
    )


def reopen_output(record: JobRecord, missing: Sequence[int], fence: Fence) -> None:
    """Take back that partitions are committed and that the output is whole, so that a run computes and seals them again.

    In this order, so that a kill in between leaves an output that is still found not to be whole.

    Raises
    ------
    IntegrityError
        The job has changed its snapshot, or rows of it were retried: what is gone cannot be computed as it was.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> reopen_output(record, [1], Fence(record.output, "demo"))
    >>> find_missing(record) is None
    True
    """
    url = absolute_url(record.output)
    if record.is_staged or list_names(join_url(url, RECORDS, RETRIES, record.job)):
        parts = f"files of {len(missing):,} of its parts are gone" if missing else f"its {MANIFEST} is gone"
        raise _make_damage(record, parts)
    for partition in missing:
        fence.remove(join_url(url, RECORDS, "commits", record.job, f"{partition:08d}.json"))
    fence.remove(join_url(url, MANIFEST))


def verify_output(
    record: JobRecord, watch: Callable[[int, int], None] = lambda done, total: None
) -> OutputVerification:
    """Read a finished output and compare it with its manifest, part by part.

    Parameters
    ----------
    record
        The job that wrote it.
    watch
        Called with how many of how many parts have been read.

    Raises
    ------
    IntegrityError
        The manifest is gone or another job's.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> _ = Path("labels.jsonl/part-00000001.jsonl").write_text("")
    >>> [part.partition for part in verify_output(record).damaged]
    [1]
    """
    sealed = _open(record, absolute_url(record.output))
    damaged: list[DamagedPart] = []
    for number, part in enumerate(sealed.parts):
        damaged += _check_part(sealed, part)
        watch(number + 1, len(sealed.parts))
    return OutputVerification(
        job=record.job,
        output=sealed.url,
        parts=len(sealed.parts),
        rows_out=sum(part.rows_out for part in sealed.parts),
        rows_quarantined=sum(part.rows_quarantined for part in sealed.parts),
        snapshots=tuple(sorted({part.snapshot for part in sealed.parts})),
        damaged=tuple(damaged),
        strays=_find_strays(record, sealed),
    )


def _open(record: JobRecord, url: str) -> SealedOutput:
    manifest = read_manifest(url)
    if manifest is None:
        raise _make_damage(record, f"its {MANIFEST} is gone")
    if manifest.get("job") != record.job:
        raise _make_damage(record, f"its {MANIFEST} is that of job {manifest.get('job')}")
    return open_output(url)


def _files_of(record: JobRecord, sealed: SealedOutput, part: SealedPart) -> Iterator[str]:
    sink = make_sink(sealed.url, choose_output_format(sealed.url, record.recipe.output.format), sealed.layout)
    # A merged retry gives a part of one object another name, which the manifest has.
    yield from sink.objects(part.partition) if part.path.startswith("*/") else [part.path]
    if part.rows_quarantined:
        yield join_url(QUARANTINE, name_rejects(part.partition))


def _find_strays(record: JobRecord, sealed: SealedOutput) -> tuple[str, ...]:
    """Return what lies among an output's parts and is none. What a Zarr array has beside its chunks, nobody reads."""
    expected = {path for part in sealed.parts for path in _files_of(record, sealed, part)}
    is_zarr = choose_output_format(sealed.url, record.recipe.output.format) == "zarr"
    visible = (
        name
        for name in find_files(sealed.url)
        if name.startswith(f"{QUARANTINE}/") or not (is_zarr or name.startswith(("_", ".")))
    )
    return tuple(sorted(name for name in visible if name not in expected))


def _check_part(sealed: SealedOutput, part: SealedPart) -> Iterator[DamagedPart]:
    try:
        found = sealed.read(part.partition)
    except (IntegrityError, NotOurs) as error:
        yield DamagedPart(partition=part.partition, problem=error.message)
        return
    for what, rows, wanted in (
        ("rows", len(found.positions), part.rows_out),
        ("quarantined rows", len(found.rejects), part.rows_quarantined),
    ):
        if rows != wanted:
            problem = f"it has {rows} {what}, by the manifest {wanted}"
            yield DamagedPart(partition=part.partition, problem=problem)


def _make_damage(record: JobRecord, what: str) -> IntegrityError:
    return IntegrityError(
        f"{record.output}, which job {record.job} finished, is not whole: {what}",
        hint="Put the files back, or compute the output again with --fresh.",
    )
