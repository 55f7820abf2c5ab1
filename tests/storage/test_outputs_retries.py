"""Merging what a retry recovered: as pure functions, in every format, and killed between any two steps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer.errors import IntegrityError, JobBusy
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.outputs.merging import merge_part, merge_records
from daskinfer.storage.outputs.quarantine import read_rejects
from daskinfer.storage.outputs.reading import open_output
from daskinfer.storage.outputs.retry_rounds import (
    close_round,
    next_round,
    note_inputs,
    save_round,
    supplement_url,
)
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, Sink
from daskinfer.storage.outputs.staging import StagedPartSink
from daskinfer.testing.contracts.sinks import FIELDS, JOB, KEEP, METADATA, PARTITION_ROWS, ROWS, make_part, make_record
from daskinfer.testing.stress.campaigns import campaign_size

FORMATS = ["zarr", "parquet", "jsonl"]
LAYOUT = OutputLayout(JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
REFUSED: dict[int, tuple[int, ...]] = {0: (0, 3), 1: (1,), 2: ()}


class Killed(BaseException):
    """Stands for the end of the process."""


def open_format(url: Path, format: str) -> Sink:
    return open_sink(str(url), format, JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)


def fill(url: Path, format: str, refused: dict[int, tuple[int, ...]]) -> None:
    sink = open_format(url, format)
    sink.create()
    for number in range(3):
        part = make_part(number, refused[number])
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({"inputs": "sha256:old"})


def make_retried(before: OutputPart, recovered: tuple[int, ...]) -> OutputPart:
    """Return the results of the rows that a part refused, of which some come out now."""
    whole = make_part(before.partition.number)
    left = tuple(reject for reject in before.rejects if reject.row - whole.partition.first_row not in recovered)
    chosen = np.array(recovered, np.int64)
    return OutputPart(
        partition=whole.partition,
        positions=whole.positions[chosen],
        arrays={name: values[chosen] for name, values in whole.arrays.items()},
        kept=whole.kept.take(chosen),
        rejects=left,
    )


def compute(url: Path, format: str, recovered: dict[int, tuple[int, ...]], epoch: int = 2) -> None:
    """Do what the tasks of a retry do."""
    round = next_round(str(url), JOB)
    fence = Fence(str(url), JOB)
    save_round(fence, round)
    note_inputs(fence, round, "sha256:new")
    inner = open_format(Path(supplement_url(str(url), JOB, round.number, epoch)), format)
    sink = StagedPartSink(CommitLog(str(url), LAYOUT, round=round.number), inner)
    sink.create()
    output = open_output(str(url))
    for part in round.parts:
        before = output.read(part.partition)
        merged = merge_part(before, make_retried(before, recovered[part.partition]))
        record = make_record(merged, sink.write(merged), epoch)
        sink.commit(record.model_copy(update={"round": round.number, "microbatches": ((9, 9),)}))


def close(url: Path, format: str, check: Any = lambda: None) -> dict[str, Any]:
    round = next_round(str(url), JOB)
    records = list(CommitLog(str(url), LAYOUT, round=round.number).committed())
    ledgers = dict.fromkeys(range(3), CommitLog(str(url), LAYOUT))
    return close_round(Fence(str(url), JOB, check=check), open_format(url, format), round, records, ledgers)


def contents(url: Path, *skipped: str) -> dict[str, bytes]:
    files = {str(path.relative_to(url)): path.read_bytes() for path in sorted(url.rglob("*")) if path.is_file()}
    return {
        name: data
        for name, data in files.items()
        if not name.startswith(("_daskinfer/retries", "_daskinfer/work", *skipped))
    }


def records_of(url: Path) -> dict[int, CommitRecord]:
    return {record.partition: record for record in CommitLog(str(url), LAYOUT).committed()}


@pytest.mark.parametrize("format", FORMATS)
def test_the_merged_output_is_the_one_that_never_had_the_trouble(tmp_path: Path, format: str) -> None:
    fill(tmp_path / "calm", format, {0: (), 1: (), 2: ()})
    fill(tmp_path / "out", format, REFUSED)
    before = records_of(tmp_path / "out")
    compute(tmp_path / "out", format, {0: (0, 3), 1: (1,)})
    manifest = close(tmp_path / "out", format)
    records = ("_daskinfer", "_MANIFEST.json")
    assert contents(tmp_path / "out", *records) == contents(tmp_path / "calm", *records)
    assert (manifest["rows_in"], manifest["rows_out"], manifest["rows_quarantined"]) == (10, 10, 0)
    told = {"round": 1, "rows_retried": 3, "rows_recovered": 3, "inputs": "sha256:new"}
    assert manifest["retries"] == [told] and manifest["inputs"] == "sha256:old"
    calm = read_manifest(str(tmp_path / "calm"))
    assert calm is not None and manifest["parts"] == calm["parts"]
    after = records_of(tmp_path / "out")
    assert after[2] == before[2]
    assert after[0] == before[0].model_copy(
        update={
            "round": 1,
            "rows_out": 4,
            "rows_quarantined": 0,
            "tokens": 2,
            "padded_tokens": 2,
            "microbatches": ((1, 1), (9, 9)),
            "digest": calm["parts"][0]["digest"],
            "size": records_of(tmp_path / "calm")[0].size,
        }
    )
    assert next_round(str(tmp_path / "out"), JOB).parts == ()
    kept = sorted(path.name for path in (tmp_path / "out/_daskinfer/retries" / JOB / "0001").iterdir())
    assert kept == ["before.json", "commits", "inputs.json", "round.json"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_fails_again_stays_in_the_quarantine(tmp_path: Path, format: str) -> None:
    fill(tmp_path, format, REFUSED)
    compute(tmp_path, format, {0: (3,), 1: ()})
    untouched = contents(tmp_path, "_MANIFEST")
    manifest = close(tmp_path, format)
    assert [reject.row for reject in read_rejects(str(tmp_path), 0)] == [0]
    assert (manifest["rows_out"], manifest["rows_quarantined"]) == (8, 2)
    part = open_output(str(tmp_path)).read(0)
    assert part.rows.tolist() == [1, 2, 3] and [reject.row for reject in part.rejects] == [0]
    assert np.array_equal(part.arrays["embedding"], make_part(0).arrays["embedding"][1:])
    assert part.kept.column("title").to_pylist() == ['"1"', '"2"', '"3"']
    # Where nothing came out, nothing changes.
    now = contents(tmp_path, "_MANIFEST")
    changed = {name for name in untouched if now.get(name) != untouched[name]}
    assert changed and not [name for name in changed if "0001" in name or "/c/1" in name]
    # The next retry takes up what is left.
    compute(tmp_path, format, {0: (0,), 1: (1,)}, epoch=3)
    manifest = close(tmp_path, format)
    assert [told["rows_recovered"] for told in manifest["retries"]] == [1, 2]
    assert not list((tmp_path / "_quarantine").iterdir())
    assert open_output(str(tmp_path)).read(0).rows.tolist() == [0, 1, 2, 3]


def test_other_rows_than_those_refused_are_not_merged() -> None:
    before = make_part(0, (0, 3))
    with pytest.raises(IntegrityError, match=r"rows \[0, 3\] were refused, but rows \[0\] were retried"):
        merge_part(before, replace(make_retried(before, (0,)), rejects=()))


def test_a_round_with_a_hole_is_not_closed(tmp_path: Path) -> None:
    fill(tmp_path, "jsonl", REFUSED)
    compute(tmp_path, "jsonl", {0: (0, 3), 1: (1,)})
    (tmp_path / "_daskinfer/retries" / JOB / "0001/commits/00000001.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(IntegrityError, match="partition 1 is not committed"):
        close(tmp_path, "jsonl")
    assert contents(tmp_path) == before


def test_a_driver_that_was_taken_over_merges_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "parquet", REFUSED)
    compute(tmp_path, "parquet", {0: (0, 3), 1: (1,)})
    before = contents(tmp_path)

    def check() -> None:
        raise JobBusy("taken over")

    with pytest.raises(JobBusy):
        close(tmp_path, "parquet", check)
    assert contents(tmp_path) == before


def test_an_index_of_the_old_records_is_not_believed(tmp_path: Path) -> None:
    fill(tmp_path, "parquet", REFUSED)
    ledger = CommitLog(str(tmp_path), LAYOUT)
    ledger.keep(ledger.digests())
    assert sum(digest.rows_quarantined for digest in ledger.digests()) == 3
    compute(tmp_path, "parquet", {0: (0, 3), 1: ()})
    close(tmp_path, "parquet")
    assert [digest.rows_quarantined for digest in ledger.digests()] == [0, 1, 0]


def test_the_attempt_that_commits_first_counts(tmp_path: Path) -> None:
    """A driver was killed between its parts and its records; the next one recovers more, and a sleeper less."""
    fill(tmp_path, "parquet", REFUSED)
    compute(tmp_path, "parquet", {0: (3,), 1: ()}, epoch=2)
    for path in (tmp_path / "_daskinfer/retries" / JOB / "0001/commits").iterdir():
        path.unlink()
    compute(tmp_path, "parquet", {0: (0, 3), 1: (1,)}, epoch=3)
    compute(tmp_path, "parquet", {0: (), 1: ()}, epoch=4)
    manifest = close(tmp_path, "parquet")
    assert (manifest["rows_out"], manifest["rows_quarantined"]) == (10, 0)
    assert open_output(str(tmp_path)).read(0).rows.tolist() == [0, 1, 2, 3]


@contextmanager
def killed_at(step: int) -> Iterator[list[str]]:
    """Let the process end before its next change number `step` (from 0) to a local file; list the changes made."""
    made: list[str] = []

    def counted(call: Any, name: str) -> Any:
        def change(*words: Any, **options: Any) -> Any:
            if len(made) == step:
                raise Killed
            made.append(f"{name} {words[-1]}")
            return call(*words, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        from daskinfer.storage.outputs import retry_rounds

        patch.setattr(retry_rounds, "_COPIES", 1)
        for name in ("link", "replace", "remove", "rmdir", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name), name))
        yield made


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.late
def test_killed_between_any_two_steps_and_run_again(tmp_path: Path, format: str) -> None:
    """Every reader in between sees each part as it was or as it will be."""
    fill(tmp_path / "prepared", format, REFUSED)
    compute(tmp_path / "prepared", format, {0: (0, 3), 1: ()})
    shutil.copytree(tmp_path / "prepared", tmp_path / "smooth")
    with killed_at(-1) as steps:
        close(tmp_path / "smooth", format)
    wanted = contents(tmp_path / "smooth")
    assert len(steps) > 6
    # A Zarr part is many files, and merging them over and over takes its time.
    for step in range(0, len(steps), campaign_size(5, 1) if format == "zarr" else 1):
        url = tmp_path / f"killed-{step}"
        shutil.copytree(tmp_path / "prepared", url)
        earlier = open_output(str(url))
        with killed_at(step), pytest.raises(Killed):
            close(url, format)
        for output in (earlier, open_output(str(url))):
            _check_part(output, 1, [4, 6, 7])
            _check_part(output, 2, [8, 9])
            if format != "zarr" or "/c/" not in "".join(steps[step - 1 : step + 1]):
                _check_part(output, 0, [0, 1, 2, 3], [1, 2])
        if read_manifest(str(url))["rows_quarantined"] == 3:  # type: ignore[index]
            close(url, format)
        assert contents(url) == wanted, steps[step]


def _check_part(output: Any, number: int, *possible: list[int]) -> None:
    part = output.read(number)
    assert part.rows.tolist() in possible
    taken = [row - part.partition.first_row for row in part.rows.tolist()]
    assert np.array_equal(part.arrays["maps"], make_part(number).arrays["maps"][taken])
    everything = range(part.partition.first_row, part.partition.first_row + part.partition.rows)
    assert sorted([*part.rows.tolist(), *(reject.row for reject in part.rejects)]) == list(everything)


def test_a_zarr_part_is_read_by_its_valid_rows_while_it_is_merged(tmp_path: Path) -> None:
    """`valid` is replaced last: whoever believes it never takes a gap for a row."""
    fill(tmp_path, "zarr", REFUSED)
    names = open_format(tmp_path, "zarr").objects(0)
    assert names[-1] == "valid/c/0" and len(names) == len(FIELDS) + len(KEEP) + 1


def test_an_interrupted_merge_of_zarr_is_told(tmp_path: Path) -> None:
    fill(tmp_path, "zarr", REFUSED)
    compute(tmp_path, "zarr", {0: (0, 3), 1: (1,)})
    with killed_at(4), pytest.raises(Killed):
        close(tmp_path, "zarr")
    with pytest.raises(IntegrityError) as caught:
        open_output(str(tmp_path)).read(0)
    assert f"daskinfer retry {JOB}" in str(caught.value.hint)
    close(tmp_path, "zarr")
    assert open_output(str(tmp_path)).read(0).rows.tolist() == [0, 1, 2, 3]


def test_another_jobs_output_is_not_retried(tmp_path: Path) -> None:
    fill(tmp_path, "jsonl", REFUSED)
    for job, url in (("job-2", tmp_path), (JOB, tmp_path / "nothing")):
        with pytest.raises(IntegrityError, match=f"is not the manifest of job {job}"):
            next_round(str(url), job)


def test_starting_over_leaves_nothing_of_a_retry(tmp_path: Path) -> None:
    fill(tmp_path, "parquet", REFUSED)
    compute(tmp_path, "parquet", {0: (0, 3), 1: (1,)})
    open_format(tmp_path, "parquet").discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_record_of_a_merged_part_keeps_what_the_run_did(tmp_path: Path) -> None:
    part = make_part(0, (0,))
    before = make_record(part, open_format(tmp_path, "jsonl").write(part))
    retried = before.model_copy(update={"epoch": 7, "round": 2, "rows_out": 4, "rows_quarantined": 0, "tokens": 5})
    merged = merge_records(before, retried)
    assert (merged.epoch, merged.round, merged.tokens, merged.rows_out) == (1, 2, 6, 4)
    assert json.loads(merged.model_dump_json())["microbatches"] == [[1, 1], [1, 1]]
