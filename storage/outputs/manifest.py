"""The manifest of an output, and names and objects of what is beside its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskinfer.errors import IntegrityError
from daskinfer.ids import parse_json
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, read_record
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.places import MANIFEST, RECORDS, RETRIES


def read_manifest(url: str) -> dict[str, Any] | None:
    """Return the manifest of a sealed output, None where it is not sealed.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> manifest = read_manifest(finish_job("work", "labels.jsonl", rows=3).output)
    >>> manifest["rows_out"], len(manifest["parts"]), read_manifest("nowhere") is None
    (3, 2, True)
    """
    try:
        data = read_record(join_url(url, MANIFEST), 4 * LARGEST_MANIFEST)
    except FileNotFoundError:
        return None
    return parse_manifest(join_url(url, MANIFEST), data)


def parse_manifest(url: str, data: bytes) -> dict[str, Any]:
    """Return the manifest that some bytes are; `url` is where they lie.

    Raises
    ------
    IntegrityError
        They are none.

    Examples
    --------
    >>> parse_manifest("labels.jsonl/_MANIFEST.json", b"[]")
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: labels.jsonl/_MANIFEST.json is damaged: it is no JSON object
    Put it back, or make the output again with --fresh.
    """
    try:
        manifest = parse_json(data)
        if not isinstance(manifest, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{url} is damaged: {error}", hint="Put it back, or make the output again with --fresh."
        ) from error
    return manifest


def round_url(url: str, job: str, round: int) -> str:
    """Return the folder of a job's retry with this number, from 1.

    Examples
    --------
    >>> round_url("s3://bucket/labels.jsonl", "demo", 1)
    's3://bucket/labels.jsonl/_daskinfer/retries/demo/0001'
    """
    return join_url(url, RECORDS, RETRIES, job, f"{round:04d}")


def name_rejects(partition: int) -> str:
    """Return the name of a partition's file in the quarantine.

    Examples
    --------
    >>> name_rejects(7)
    'part-00000007.jsonl'
    """
    return f"part-{partition:08d}.jsonl"


def create_same(url: str, data: bytes, fence: Fence, is_committed: Callable[[], bool] = lambda: True) -> None:
    """Create an object, or find it there with the same bytes.

    Parameters
    ----------
    url, data
        What and where.
    fence
        Of the job.
    is_committed
        Says whether what is there counts already; else it is of an attempt that ended before its commit.

    Raises
    ------
    IntegrityError
        It has others, which count.
    OutputOwned
        The output is another job's.

    Examples
    --------
    >>> fence = Fence("labels.jsonl", "demo")
    >>> create_same("labels.jsonl/part", b"mine", fence)
    >>> create_same("labels.jsonl/part", b"mine", fence)
    >>> create_same("labels.jsonl/part", b"others'", fence)
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: labels.jsonl/part exists with other bytes than this attempt computed
    Workers of one job must have equal hardware and libraries; start over: daskinfer run RECIPE --fresh.
    """
    if fence.create(url, data):
        return
    fence.confirm()
    if is_committed():
        raise IntegrityError(
            f"{url} exists with other bytes than this attempt computed",
            hint="Workers of one job must have equal hardware and libraries; start over: daskinfer run RECIPE --fresh.",
        )
    fence.replace(url, data)
