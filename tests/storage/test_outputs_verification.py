"""What is said of a finished output is true of the files that are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.record import JobRecord
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.verification import find_missing, reopen_output, verify_output
from daskinfer.testing.fixtures.jobs import finish_job

formats = pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])


def finish(folder: Path, format: str) -> tuple[JobRecord, Path]:
    place = folder / f"labels.{format}"
    return finish_job(str(folder / "work"), str(place), rows=6, refused=[1]), place


def edit_manifest(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = place / "_MANIFEST.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


@formats
def test_counts_that_the_parts_do_not_have_are_found(tmp_path: Path, format: str) -> None:
    record, place = finish(tmp_path, format)
    assert verify_output(record).damaged == ()
    assert verify_output(record).strays == ()
    edit_manifest(place, lambda manifest: manifest["parts"][1].update(rows_out=1, rows_quarantined=1))
    assert [(part.partition, part.problem) for part in verify_output(record).damaged] == [
        (1, "it has 2 rows, by the manifest 1"),
        (1, "it has 0 quarantined rows, by the manifest 1"),
    ]


@formats
def test_a_manifest_of_another_job_vouches_for_nothing(tmp_path: Path, format: str) -> None:
    record, place = finish(tmp_path, format)
    edit_manifest(place, lambda manifest: manifest.update(job="other"))
    for look in (verify_output, find_missing):
        with pytest.raises(IntegrityError, match=r"its _MANIFEST\.json is that of job other"):
            look(record)


@formats
def test_every_file_that_is_gone_is_missed(tmp_path: Path, format: str) -> None:
    record, place = finish(tmp_path, format)
    assert find_missing(record) == ()
    (place / "_quarantine/part-00000000.jsonl").unlink()
    assert find_missing(record) == (0,)
    part = place / ("score/c/2" if format == "zarr" else f"part-00000002.{format}")
    part.unlink()
    assert find_missing(record) == (0, 2)
    assert [part.partition for part in verify_output(record).damaged] == [0, 2]
    (place / "_MANIFEST.json").unlink()
    assert find_missing(record) is None


@formats
def test_what_lies_among_the_parts_is_told(tmp_path: Path, format: str) -> None:
    record, place = finish(tmp_path, format)
    (place / "_quarantine/part-00000009.jsonl").write_text("{}")
    strays = ["_quarantine/part-00000009.jsonl"]
    if format != "zarr":
        (place / f"part-00000009.{format}").write_text("{}")
        strays.append(f"part-00000009.{format}")
    assert list(verify_output(record).strays) == strays


def test_rows_of_a_retry_are_not_computed_anew(tmp_path: Path) -> None:
    record, place = finish(tmp_path, "jsonl")
    (place / "_daskinfer/retries/demo/0001").mkdir(parents=True)
    (place / "_daskinfer/retries/demo/0001/round.json").write_text("{}")
    with pytest.raises(IntegrityError, match="files of 1 of its parts are gone"):
        reopen_output(record, [1], Fence(record.output, "demo"))
    assert (place / "_MANIFEST.json").exists()
