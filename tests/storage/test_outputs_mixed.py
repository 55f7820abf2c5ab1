"""An output of one job is of one snapshot, whatever was written into its records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.storage.outputs import commit_index
from daskinfer.storage.outputs.arrays import ZarrSink
from daskinfer.storage.outputs.commit_index import CommitDigest
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.sink import OutputLayout, Sink
from daskinfer.storage.outputs.tables import TableSink
from daskinfer.testing.contracts.sinks import (
    FIELDS,
    JOB,
    KEEP,
    METADATA,
    PARTITION_ROWS,
    ROWS,
    SNAPSHOT,
    make_part,
    make_record,
)

OTHER = "sha256:" + "9" * 64
LAYOUT = OutputLayout(JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA, {0: SNAPSHOT})
FORMATS = ("zarr", "parquet", "jsonl")


def open_sink(url: Path, format: str) -> Sink:
    return ZarrSink(str(url), LAYOUT) if format == "zarr" else TableSink(str(url), LAYOUT, format)


def fill(url: Path, format: str) -> Sink:
    sink = open_sink(url, format)
    sink.create()
    for number in range(3):
        part = make_part(number, (1,) if number == 1 else ())
        sink.commit(make_record(part, sink.write(part)))
    return sink


def change(url: Path, number: int, **values: Any) -> Path:
    path = url / "_daskinfer" / "commits" / JOB / f"{number:08d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "values",
    [
        {"snapshot": OTHER},
        {"job": "job-2"},
        {"partition": 2},
        {"path": "part-00000002.jsonl"},
        {"generation": 1},
        {"rows_out": 2},
    ],
)
def test_a_record_that_was_changed_is_neither_resumed_nor_sealed(
    tmp_path: Path, format: str, values: dict[str, Any]
) -> None:
    sink = fill(tmp_path, format)
    path = change(tmp_path, 1, **values)
    with pytest.raises(IntegrityError, match=path.name) as caught:
        list(CommitLog(str(tmp_path), LAYOUT).digests())
    assert caught.value.hint
    with pytest.raises(IntegrityError, match=path.name):
        sink.seal({})
    assert not (tmp_path / "_MANIFEST.json").exists()


def test_an_index_that_was_changed_is_neither_resumed_nor_sealed(tmp_path: Path) -> None:
    sink = fill(tmp_path, "parquet")
    ledger = CommitLog(str(tmp_path), LAYOUT)
    digests = list(ledger.digests())
    ledger.keep([digests[0], replace(digests[1], snapshot=OTHER), digests[2]])
    with pytest.raises(IntegrityError, match=r"00000001\.json, or an index beside it"):
        sink.seal({})


def test_nothing_is_committed_on_another_snapshot(tmp_path: Path) -> None:
    sink = open_sink(tmp_path, "jsonl")
    part = make_part(0)
    record = make_record(part, sink.write(part)).model_copy(update={"snapshot": OTHER})
    with pytest.raises(IntegrityError, match="computes it on " + SNAPSHOT):
        sink.commit(record)
    assert not list((tmp_path / "_daskinfer").rglob("*.json"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["gone", "empty", "short"])
def test_a_part_that_is_not_there_is_not_sealed(tmp_path: Path, format: str, damage: str) -> None:
    sink = fill(tmp_path, format)
    path = tmp_path / ("embedding/c/1/0" if format == "zarr" else f"part-00000001.{format}")
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2] if damage == "short" else b"")
    digests = list(map(CommitDigest.of, sink.committed()))
    for call in (lambda: sink.inspect(digests), lambda: sink.seal({})):
        with pytest.raises(IntegrityError, match=path.name) as caught:
            call()
        assert "00000001.json" in str(caught.value.hint)
    assert not (tmp_path / "_MANIFEST.json").exists()
    path.write_bytes(data)
    sink.seal({})


@pytest.mark.parametrize("format", FORMATS)
def test_a_manifest_of_other_data_is_not_taken_for_ours(tmp_path: Path, format: str) -> None:
    sink = fill(tmp_path, format)
    whole = sink.seal({})
    assert sink.seal({}) == whole
    path = tmp_path / "_MANIFEST.json"
    manifest = json.loads(path.read_bytes())
    manifest["parts"][1]["digest"] = "0" * 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=r"_MANIFEST\.json is the manifest of other data"):
        sink.seal({})


def test_indices_know_the_sizes_of_parts() -> None:
    digest = CommitDigest(0, 0, SNAPSHOT, 4, 4, 0, "part-00000000.jsonl", "d", size=17)
    assert list(commit_index.walk(commit_index.tabulate([digest]))) == [digest]
