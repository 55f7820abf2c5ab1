"""Outputs of jobs that may change their snapshot: every generation's parts lie apart, and the seal brings them together.

A partition may then be computed twice, on two snapshots, and the slower attempt must never write over the faster one's
bytes. So no attempt writes to the output itself: each writes to its generation's folder,
`<output>/_daskinfer/generations/<job>/<generation>/`, and commits in its scope. Sealing copies what counts to its place,
after a record in the generation log has ruled out that anything else will.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.generation import Generations
from daskinfer.storage.objects.filesystem import exists, read_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.committed import CommittedPartitions
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.manifest import name_rejects
from daskinfer.storage.outputs.places import QUARANTINE, RECORDS, STAGED
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, Sink, Written

_COPIES = 8


def staged_url(url: str, job: str, generation: int) -> str:
    """Return where the parts of a generation lie, in the form of an output of their own.

    Examples
    --------
    >>> staged_url("s3://bucket/labels.jsonl", "demo", generation=1)
    's3://bucket/labels.jsonl/_daskinfer/generations/demo/0001'
    """
    return join_url(url, RECORDS, STAGED, job, f"{generation:04d}")


class StagedPartSink:
    """Where parts go that are to be brought to the output later: those of a generation, or those that a retry merged.

    Parameters
    ----------
    records
        Where their commits are recorded.
    inner
        The sink of their folder.

    Examples
    --------
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.storage.outputs.tables import TableSink
    >>> from daskinfer.testing.fixtures.jobs import finish_job, make_results
    >>> record = finish_job("work", "labels.jsonl")
    >>> layout = open_output(record.output).layout
    >>> place = staged_url(record.output, "demo", 1)
    >>> sink = StagedPartSink(CommitLog(record.output, layout, scope=1), TableSink(place, layout, "jsonl"))
    >>> sink.write(make_results(record, 0)).path, list(sink.committed())
    ('part-00000000.jsonl', [])
    """

    def __init__(self, records: CommitLog, inner: Sink) -> None:
        self._inner = inner
        self._commits = records

    def create(self) -> None:
        """Prepare the folder; idempotent."""
        self._inner.create()

    def write(self, part: OutputPart) -> Written:
        """Write a part and its quarantine beside the output."""
        return self._inner.write(part)

    def commit(self, record: CommitRecord) -> CommitRecord:
        """Create the part's commit record; return the one that is there."""
        return self._commits.commit(record)

    def committed(self) -> Iterator[CommitRecord]:
        """Return the records."""
        return self._commits.committed()


class StagedOutput:
    """A whole output whose parts are staged by generation.

    Parameters
    ----------
    url
        The output.
    layout
        Of the output.
    sink
        Of the output itself.
    generations
        Returns the job's generations as they are now.
    fence
        Through which it is written.

    Examples
    --------
    >>> from daskinfer.storage.outputs.formats import make_sink
    >>> from daskinfer.storage.outputs.reading import open_output
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> record = finish_job("work", "labels.jsonl")
    >>> layout, generations = open_output(record.output).layout, Generations(pins=(record.first_pin,))
    >>> sink, fence = make_sink(record.output, "jsonl", layout), Fence(record.output, "demo")
    >>> output = StagedOutput(record.output, layout, sink, lambda: generations, fence)
    >>> [commit.partition for commit in output.committed()]
    [0, 1]
    """

    def __init__(
        self, url: str, layout: OutputLayout, sink: Sink, generations: Callable[[], Generations], fence: Fence
    ) -> None:
        self._url = url
        self._layout = layout
        self._fence = fence
        self._sink = sink
        self._generations = generations

    def create(self) -> None:
        """Prepare the output."""
        self._sink.create()

    def committed(self, among: Container[int] | None = None) -> Iterator[CommitRecord]:
        """Return every partition's record that counts: the one in the scope that owns it."""
        generations = self._generations()
        found = {
            record.partition: record
            for scope in generations.scopes
            for record in CommitLog(self._url, self._layout, scope).committed(among)
            if generations.owner(record.partition) == scope
        }
        return iter([found[partition] for partition in sorted(found)])

    def inspect(self, records: Iterable[CommitDigest]) -> None:
        """Do nothing: a part of a generation is looked for when it is put in its place."""

    def seal(self, manifest: Mapping[str, Any]) -> bytes:
        """Copy what counts to its place and declare the output whole. The generation log must be sealed before."""
        standing = CommittedPartitions(self._url, self._layout, self._generations)
        records = sorted(standing.digests(), key=lambda record: record.partition)
        with ThreadPoolExecutor(_COPIES, thread_name_prefix="seal") as pool:
            for _ in pool.map(self._copy_part, records):
                pass
        layout = standing.layout()
        data = CommitLog(self._url, layout, fence=self._fence).seal(manifest, self._objects, records)
        for pin in self._generations().pins:
            # What was tried and not taken is kept, to be looked at.
            if not pin.is_trial or pin.scope in self._generations().owned:
                self._fence.remove(staged_url(self._url, self._layout.job, pin.generation), recursive=True)
        return data

    def discard(self) -> None:
        """Delete everything but the log of owners."""
        self._sink.discard()

    def _objects(self, partition: int) -> dict[str, int | None]:
        return dict.fromkeys(self._sink.objects(partition))

    def _copy_part(self, record: CommitDigest) -> None:
        source = staged_url(self._url, self._layout.job, record.generation)
        paths = self._sink.objects(record.partition)
        if record.rows_quarantined:
            paths.append(f"{QUARANTINE}/{name_rejects(record.partition)}")
        for path in paths:
            try:
                data = read_bytes(join_url(source, path))
            except FileNotFoundError:
                # An earlier sealer put it in place and cleared the stage; the manifest says whether that is true.
                if not exists(join_url(self._url, path)):
                    raise IntegrityError(
                        f"{join_url(source, path)} is gone, though partition {record.partition} is committed",
                        hint="Put it back, or start over: daskinfer run RECIPE --fresh.",
                    ) from None
                continue
            if not self._fence.create(join_url(self._url, path), data):
                self._fence.replace(join_url(self._url, path), data)
