"""What every output sink must do. Subclass `SinkContract`, say how a sink is opened, and pytest runs the rest."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import Partition, Reject
from daskinfer.storage.outputs.owner import Owner, claim
from daskinfer.storage.outputs.sink import OutputPart, Sink, Written

JOB = "job-1"
SNAPSHOT = "sha256:" + "1" * 64
ROWS, PARTITION_ROWS = 10, 4
FIELDS = (
    OutputField(name="embedding", kind="float32", shape=(3,)),
    OutputField(name="label", kind="string"),
    OutputField(name="tokens", kind="int64"),
    OutputField(name="maps", kind="float64", shape=(2, 3)),
    OutputField(name="mask", kind="uint8", shape=(2, 1, 2)),
)
KEEP = {"id": "int64", "title": "string", "weight": "float64", "seen": "bool"}
METADATA = {"snapshot": SNAPSHOT, "recipe": "sha256:" + "2" * 64}


def make_part(number: int, refused: Sequence[int] = (), shift: float = 0.0) -> OutputPart:
    """Return the results of a partition of the contract's input: deterministic, except for `shift`.

    Examples
    --------
    >>> part = make_part(1, refused=[2])
    >>> part.rows, part.arrays["label"][0], [reject.row for reject in part.rejects]
    (array([4, 5, 7]), 'läbel-4', [6])
    """
    rows = min(PARTITION_ROWS, ROWS - number * PARTITION_ROWS)
    partition = Partition(number=number, first_row=number * PARTITION_ROWS, rows=rows, segments=())
    positions = np.array([position for position in range(rows) if position not in refused], np.int32)
    ids = positions.astype(np.int64) + partition.first_row
    rejects = [Reject(partition.first_row + position, "in.jsonl", position + 1, "bad", "{") for position in refused]
    return OutputPart(
        partition=partition,
        positions=positions,
        arrays={
            "embedding": (ids[:, None] / np.float32(7) + np.arange(3) + shift).astype(np.float32),
            "label": np.array([f"läbel-{row}" for row in ids.tolist()], object),
            "tokens": ids * 2,
            "maps": ids[:, None, None] / 3 + np.arange(6).reshape(2, 3),
            "mask": (ids[:, None, None, None] + np.arange(4).reshape(2, 1, 2)).astype(np.uint8),
        },
        kept=pa.table(
            {
                "id": ids,
                "title": pa.array([f'"{row}"' for row in ids.tolist()], pa.string()),
                "weight": np.where(ids % 3 == 0, np.nan, ids / 3),
                "seen": ids % 2 == 0,
            }
        ),
        rejects=tuple(rejects),
    )


def make_record(part: OutputPart, written: Written, epoch: int = 1) -> CommitRecord:
    """Return the commit record of a written part.

    Examples
    --------
    >>> record = make_record(make_part(1, refused=[2]), Written(path="part-1", digest="", bytes=90))
    >>> record.rows_in, record.rows_out, record.rows_quarantined
    (4, 3, 1)
    """
    return CommitRecord(
        job=JOB,
        snapshot=SNAPSHOT,
        partition=part.partition.number,
        epoch=epoch,
        rows_in=part.partition.rows,
        rows_out=len(part.positions),
        rows_quarantined=len(part.rejects),
        tokens=1,
        padded_tokens=1,
        microbatches=((1, 1),),
        digest=written.digest,
        path=written.path,
        size=written.bytes,
        trail=(),
    )


class SinkContract(ABC):
    """The tests; needs nothing of pytest but its `tmp_path`.

    Examples
    --------
    >>> from daskinfer.storage.outputs.formats import open_sink
    >>> class TestJsonl(SinkContract):
    ...     def open(self, url):
    ...         return open_sink(url, "jsonl", JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
    ...     def read(self, url):
    ...         lines = [line for path in sorted(Path(url).glob("*.jsonl")) for line in path.read_text().splitlines()]
    ...         rows = [json.loads(line) for line in lines]
    ...         return {name: [row[name] for row in rows] for name in rows[0]}
    >>> TestJsonl().test_rows_come_back_in_input_order(Path("."))
    """

    @abstractmethod
    def open(self, url: str) -> Sink:
        """Return the sink of job `JOB` at a URL, for `FIELDS`, `KEEP`, `METADATA`, `ROWS` and `PARTITION_ROWS`."""

    @abstractmethod
    def read(self, url: str) -> dict[str, list[Any]]:
        """Read an output with the format's usual library: accepted rows in order, column -> values."""

    def test_rows_come_back_in_input_order(self, tmp_path: Path) -> None:
        """What was written is read, whatever the order of writing."""
        url = str(tmp_path / "out [1]")
        self._fill(url, order=(2, 0, 1))
        found = self.read(url)
        assert found["id"] == [row for row in range(ROWS) if row != 5]
        assert found["row"] == found["id"]
        assert found["label"] == [f"läbel-{row}" for row in found["id"]]
        assert found["title"] == [f'"{row}"' for row in found["id"]]
        assert found["seen"] == [row % 2 == 0 for row in found["id"]]
        assert found["tokens"] == [row * 2 for row in found["id"]]
        expected = np.concatenate([make_part(n, (1,) if n == 1 else ()).arrays["embedding"] for n in range(3)])
        assert np.array_equal(np.array(found["embedding"], np.float32), expected)
        parts = [make_part(n, (1,) if n == 1 else ()) for n in range(3)]
        for name in ("maps", "mask"):
            assert found[name] == np.concatenate([part.arrays[name] for part in parts]).tolist()
        weights = np.array([np.nan if row % 3 == 0 else row / 3 for row in found["id"]])
        assert np.array_equal(np.array(found["weight"], float), weights, equal_nan=True)

    def test_equal_parts_give_equal_bytes(self, tmp_path: Path) -> None:
        """Two outputs of the same job hold the same files, byte for byte."""
        self._fill(str(tmp_path / "one"), order=(0, 1, 2))
        self._fill(str(tmp_path / "two"), order=(2, 1, 0))
        assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
        assert len(_contents(tmp_path / "one")) >= 6

    def test_a_part_may_be_tried_again(self, tmp_path: Path) -> None:
        """A second attempt with the same bytes changes nothing and gets the first one's record."""
        sink = self.open(str(tmp_path / "out"))
        sink.create()
        sink.create()
        part = make_part(1, (1,))
        written = sink.write(part)
        first = sink.commit(make_record(part, written, epoch=1))
        before = _contents(tmp_path)
        assert sink.write(part) == written
        assert sink.commit(make_record(part, written, epoch=2)) == first
        assert _contents(tmp_path) == before
        assert list(sink.committed()) == [first]

    def test_other_bytes_are_never_taken(self, tmp_path: Path) -> None:
        """An attempt that computed something else is refused before it can count."""
        sink = self.open(str(tmp_path / "out"))
        sink.create()
        part, other = make_part(0), make_part(0, shift=1.0)
        first = sink.commit(make_record(part, sink.write(part)))
        try:
            sink.commit(make_record(other, sink.write(other)))
        except IntegrityError:
            assert list(sink.committed()) == [first]
        else:
            raise AssertionError("a second, different part was accepted")

    def test_a_late_attempt_destroys_nothing(self, tmp_path: Path) -> None:
        """One that was taken for dead, and computed something else, leaves what is committed as it is."""
        sink = self.open(str(tmp_path / "out"))
        sink.create()
        part, other = make_part(0), make_part(0, shift=1.0)
        sink.commit(make_record(part, sink.write(part)))
        before = _contents(tmp_path)
        with suppress(IntegrityError):
            sink.write(other)
        assert _contents(tmp_path) == before

    def test_a_part_without_a_record_does_not_exist(self, tmp_path: Path) -> None:
        """Writing is not committing."""
        sink = self.open(str(tmp_path / "out"))
        sink.create()
        sink.write(make_part(0))
        assert list(sink.committed()) == []

    def test_rows_must_add_up(self, tmp_path: Path) -> None:
        """A record that loses a row is refused."""
        sink = self.open(str(tmp_path / "out"))
        sink.create()
        part = make_part(0)
        record = make_record(part, sink.write(part))
        for wrong in ({"rows_out": 3}, {"rows_in": 5, "rows_quarantined": 1}, {"job": "job-2"}, {"partition": 3}):
            try:
                sink.commit(record.model_copy(update=wrong))
            except IntegrityError:
                continue
            raise AssertionError(f"a record with {wrong} was accepted")

    def test_the_quarantine_holds_the_refused_rows(self, tmp_path: Path) -> None:
        """One file a partition with rejects, and none without."""
        self._fill(str(tmp_path / "out"))
        (path,) = (tmp_path / "out" / "_quarantine").iterdir()
        assert path.name == "part-00000001.jsonl"
        assert json.loads(path.read_text()) == {
            "row": 5,
            "source": "in.jsonl",
            "line": 2,
            "error": "bad",
            "excerpt": "{",
            "kind": "unreadable",
        }

    def test_only_a_whole_output_is_sealed(self, tmp_path: Path) -> None:
        """The manifest needs every partition, and is made once."""
        url = str(tmp_path / "out")
        sink = self.open(url)
        sink.create()
        for number in (0, 2):
            part = make_part(number)
            sink.commit(make_record(part, sink.write(part)))
        try:
            sink.seal({})
        except IntegrityError as error:
            assert "2 of 3" in str(error) and "missing one is 1" in str(error)
        else:
            raise AssertionError("an output with a hole was sealed")
        (tmp_path / "out" / ".of-a-writer-that-was-killed.tmp").write_bytes(b"half")
        sealed = self._fill(url)
        assert not [*(tmp_path / "out").rglob(".*.tmp")]
        manifest = json.loads(sealed)
        assert (manifest["rows_in"], manifest["rows_out"], manifest["rows_quarantined"]) == (10, 9, 1)
        assert [part["partition"] for part in manifest["parts"]] == [0, 1, 2]
        assert (manifest["job"], manifest["snapshots"], manifest["key"]) == (JOB, [SNAPSHOT], "k")
        assert self.open(url).seal({"key": "another"}) == sealed

    def test_discard_leaves_nothing_of_ours(self, tmp_path: Path) -> None:
        """Data, records, quarantine and manifest go; a stranger's file and the log of owners stay."""
        url = str(tmp_path / "out")
        claim(url, Owner(job=JOB, request="r", snapshot=SNAPSHOT, created="2024-01-01T00:00:00+00:00"), None)
        self._fill(url)
        (tmp_path / "out" / "note.txt").write_text("x")
        self.open(url).discard()
        assert set(_contents(tmp_path / "out")) == {"note.txt", "_daskinfer/owner/000000000000.json"}
        self._fill(url)

    def _fill(self, url: str, order: Sequence[int] = (0, 1, 2)) -> bytes:
        sink = self.open(url)
        sink.create()
        for number in order:
            part = make_part(number, (1,) if number == 1 else ())
            sink.commit(make_record(part, sink.write(part)))
        return sink.seal({"key": "k"})


def _contents(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
