"""A retry of a sealed output's quarantined rows, at rest.

Every retry is a *round*, numbered from 1, in `<output>/_daskinfer/retries/<job>/<round>/`::

    round.json               the parts that have quarantined rows, as the manifest names them; created once
    inputs.json              digest of the input files as they were read last
    <epoch>/                 these parts with the rows recovered by that driver, in the form of an output of their own
    commits/<partition>.json which of them counts; created once, by the first one
    before.json              the manifest as it was; created once, before the first part is replaced

Nothing of the output itself changes before all these parts are committed and `before.json` is there. From then on the
round has one outcome, and reaching it is copying: part by part, then its quarantine, then its record, and last the manifest. A driver that dies on
the way leaves everything that the next one needs to do the same again. The manifest that names the round closes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import TypeAdapter, ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.ids import canonical_json, parse_json
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.section import Section
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, exists, list_names, read_bytes, read_record
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.manifest import create_same, name_rejects, read_manifest, round_url
from daskinfer.storage.outputs.merging import merge_manifest, merge_records
from daskinfer.storage.outputs.places import MANIFEST, QUARANTINE
from daskinfer.storage.outputs.reading import SealedPart
from daskinfer.storage.outputs.sink import Sink

_COPIES = 8


class Round(Section):
    """What one retry of a job retries."""

    number: int
    """From 1."""
    job: str
    """Job id."""
    parts: tuple[SealedPart, ...]
    """Every part with quarantined rows, as it was before."""

    @property
    def rows(self) -> int:
        """How many rows are retried."""
        return sum(part.rows_quarantined for part in self.parts)

    def part(self, partition: int) -> SealedPart:
        """Return a part as it was before."""
        return next(part for part in self.parts if part.partition == partition)


def next_round(url: str, job: str) -> Round:
    """Return what there is to retry in a sealed output: the round that is under way, or a new one.

    Raises
    ------
    IntegrityError
        The output is not sealed, or is another job's.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> round = next_round(finish_job("work", "labels.jsonl", refused=[1]).output, "demo")
    >>> round.number, round.rows, [part.partition for part in round.parts]
    (1, 1, [0])
    """
    manifest = read_manifest(url)
    if manifest is None or manifest.get("job") != job:
        raise IntegrityError(
            f"{join_url(url, MANIFEST)} is not the manifest of job {job}",
            hint="The output was deleted or made by another job; make it again with --fresh.",
        )
    try:
        parts = TypeAdapter(tuple[SealedPart, ...]).validate_python(manifest["parts"])
        len(manifest.get("retries", []))
    except (ValidationError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{join_url(url, MANIFEST)} does not say what its parts are", hint="Put it back, or use --fresh."
        ) from error
    refused = tuple(part for part in parts if part.rows_quarantined)
    return Round(number=len(manifest.get("retries", [])) + 1, job=job, parts=refused)


def save_round(fence: Fence, round: Round) -> None:
    """Write down what a round retries; a second time it is there.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.jsonl", refused=[1]).output
    >>> round = next_round(output, "demo")
    >>> save_round(Fence(output, "demo"), round)
    >>> read_round(output, "demo", 1) == round
    True
    """
    place = join_url(round_url(fence.url, round.job, round.number), "round.json")
    create_same(place, round.model_dump_json().encode(), fence)


def note_inputs(fence: Fence, round: Round, digest: str) -> None:
    """Write down which input files a round reads its rows from: they may have been corrected since the run.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.jsonl", refused=[1]).output
    >>> note_inputs(Fence(output, "demo"), next_round(output, "demo"), "sha256:0")
    >>> read_record(join_url(round_url(output, "demo", 1), "inputs.json"))
    b'{"inputs":"sha256:0"}'
    """
    place = join_url(round_url(fence.url, round.job, round.number), "inputs.json")
    fence.replace(place, canonical_json({"inputs": digest}))


def read_round(url: str, job: str, number: int) -> Round:
    """Return what a round retries.

    Examples
    --------
    >>> read_round("labels.jsonl", "demo", 1)
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: labels.jsonl/_daskinfer/retries/demo/0001/round.json is gone, ...
    """
    place = join_url(round_url(url, job, number), "round.json")
    try:
        return Round.model_validate_json(read_record(place, LARGEST_MANIFEST))
    except (ValidationError, FileNotFoundError) as error:
        raise IntegrityError(
            f"{place} is gone, or is not the record of a retry",
            hint="Put it back, or make the output again with --fresh.",
        ) from error


def has_begun_merging(url: str, round: Round) -> bool:
    """Whether parts of the output may be replaced by those of a round already.

    Examples
    --------
    >>> has_begun_merging("labels.jsonl", Round(number=1, job="demo", parts=()))
    False
    """
    return exists(join_url(round_url(url, round.job, round.number), "before.json"))


def supplement_url(url: str, job: str, round: int, epoch: int) -> str:
    """Return where a driver's merged parts wait, in the form of an output of their own.

    Each driver has a folder, because the rows that it recovers may be others than those of the one before.

    Examples
    --------
    >>> supplement_url("s3://bucket/labels.jsonl", "demo", round=1, epoch=2)
    's3://bucket/labels.jsonl/_daskinfer/retries/demo/0001/e0002'
    """
    return join_url(round_url(url, job, round), f"e{epoch:04d}")


def close_round(
    fence: Fence, sink: Sink, round: Round, records: Sequence[CommitRecord], logs: Mapping[int, CommitLog]
) -> dict[str, Any]:
    """Put the merged parts of a round in their places and the manifest that names them in its; return the manifest.

    Parameters
    ----------
    fence
        Of the output: no driver that slept while another closed this round, or later ones, writes anything.
    sink
        Of the output.
    round
        What was retried.
    records
        The round's commit record of every part.
    logs
        Partition -> the records among which its own counts.

    Raises
    ------
    IntegrityError
        A part is not committed, or the folder of one was deleted.

    Examples
    --------
    >>> from daskinfer.storage.outputs.formats import make_sink
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> output = finish_job("work", "labels.jsonl", refused=[1]).output
    >>> sink = make_sink(output, "jsonl", open_output(output).layout)
    >>> close_round(Fence(output, "demo"), sink, next_round(output, "demo"), records=[], logs={})
    Traceback (most recent call last):
        ...
    daskinfer.errors.IntegrityError: .../0001 cannot be closed: partition 0 is not committed
    """
    url = fence.url
    place = round_url(url, round.job, round.number)
    missing = {part.partition for part in round.parts} - {record.partition for record in records}
    if missing:
        raise IntegrityError(f"{place} cannot be closed: partition {min(missing)} is not committed")
    for record in records:
        if record.snapshot != round.part(record.partition).snapshot:
            raise IntegrityError(
                f"{place} cannot be closed: partition {record.partition} was computed on "
                f"{round.part(record.partition).snapshot}, and its retry on {record.snapshot}",
                hint="A record was changed by hand: put it back, or make the output again with --fresh.",
            )
    before = read_record(join_url(url, MANIFEST), LARGEST_MANIFEST)
    create_same(join_url(place, "before.json"), before, fence)

    for log in {logs[record.partition] for record in records}:
        log.drop_index()

    def adopt(record: CommitRecord) -> None:
        _merge_part(fence, sink, round, record, logs[record.partition])

    with ThreadPoolExecutor(_COPIES, thread_name_prefix="merge") as pool:
        for _ in pool.map(adopt, records):
            pass
    try:
        inputs = str(parse_json(read_record(join_url(place, "inputs.json")))["inputs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{place}/inputs.json is gone, or does not name the inputs of a retry",
            hint="Put it back, or make the output again with --fresh.",
        ) from error
    manifest = merge_manifest(parse_json(before), records, round.number, inputs)
    fence.replace(join_url(url, MANIFEST), canonical_json(manifest))
    clear_supplements(fence, round.number)
    return manifest


def clear_supplements(fence: Fence, round: int) -> None:
    """Delete the merged parts of a closed round, which are in their places; what it did stays.

    Examples
    --------
    >>> fence = Fence("labels.jsonl", "demo")
    >>> fence.replace(join_url(supplement_url(fence.url, "demo", 1, 1), "part-00000000.jsonl"), b"{}")
    >>> clear_supplements(fence, 1)
    >>> list_names(round_url(fence.url, "demo", 1))
    []
    """
    place = round_url(fence.url, fence.job, round)
    for name in list_names(place):
        if name.startswith("e"):
            fence.remove(join_url(place, name), recursive=True)
    fence.leave()


def _merge_part(fence: Fence, sink: Sink, round: Round, record: CommitRecord, log: CommitLog) -> None:
    """Put a merged part in its place: the data first, then what is left of its quarantine, then its record."""
    url = fence.url
    source = supplement_url(url, round.job, round.number, record.epoch)
    rejects = f"{QUARANTINE}/{name_rejects(record.partition)}"
    try:
        if record.digest != round.part(record.partition).digest:
            for path in sink.objects(record.partition):
                fence.replace(join_url(url, path), read_bytes(join_url(source, path)))
        if record.rows_quarantined:
            fence.replace(join_url(url, rejects), read_bytes(join_url(source, rejects)))
        else:
            fence.remove(join_url(url, rejects))
    except FileNotFoundError as error:
        raise IntegrityError(
            f"partition {record.partition} of retry {round.number} cannot be merged: {error} is gone",
            hint="Something of _daskinfer/retries was deleted; make the output again with --fresh.",
        ) from error
    try:
        before = log.read(record.partition)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"the commit record of partition {record.partition} in {url} is gone",
            hint="Put it back, or make the output again with --fresh.",
        ) from error
    if before.digest != record.digest:
        log.replace(merge_records(before, record))
