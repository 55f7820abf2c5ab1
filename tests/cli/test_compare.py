"""`daskinfer compare` over real outputs, from what is typed to what is printed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from daskinfer import api
from daskinfer.cli import main
from daskinfer.spec.comparison import GateReport
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.recipe.gate import Gate
from daskinfer.spec.rows import Partition, Reject
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.sink import OutputPart
from daskinfer.testing.contracts.sinks import JOB, make_record

FIELDS = [OutputField(name="label", kind="string"), OutputField(name="scores", kind="float32", shape=(3,))]


def write_output(
    url: str,
    *,
    version: int = 1,
    rows: int = 400,
    size: int = 100,
    noise: float = 0.0,
    refused: int = 0,
    width: int = 3,
) -> None:
    """Write what a classifier might have: the last `refused` rows refused, scores off by some noise."""
    fields = [FIELDS[0], FIELDS[1].model_copy(update={"shape": (width,)})]
    sink = open_sink(url, "auto", JOB, fields, {"id": "string"}, size, rows, {})
    sink.create()
    for number, first in enumerate(range(0, rows, size)):
        ids = np.arange(first, min(first + size, rows - refused))
        scores = np.random.default_rng(number).random((size, width), np.float32)[: len(ids)]
        scores += np.float32(noise) * np.random.default_rng(number + 99).normal(size=scores.shape).astype(np.float32)
        whole = Partition(number=number, first_row=first, rows=min(size, rows - first), segments=())
        labels = np.array([f"class-{best}" for best in scores.argmax(axis=1)], object)
        kept = pa.table({"id": pa.array([f"t{row}" for row in ids.tolist()], pa.string())})
        rejects = tuple(Reject(row, "in", row, "bad", "{") for row in range(first + len(ids), first + whole.rows))
        arrays: dict[str, Any] = {"label": labels, "scores": scores}
        part = OutputPart(whole, np.arange(len(ids), dtype=np.int32), arrays, kept, rejects)
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({"checkpoint": f"tiny@v{version}", "snapshot": "sha256:" + f"{version}" * 64, "inputs": "sha256:0"})


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments], prog_name="daskinfer")


@pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
def test_the_same_in_another_format_passes(format: str) -> None:
    write_output("one.zarr")
    write_output(f"two.{format}", version=2)
    result = call("one.zarr", f"two.{format}", "--gate", "max_changed=0", "--tolerance", "0")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "passed  8 checks"
    assert lines[1].endswith("one.zarr  tiny@v1 sha256:111111111111")
    assert (
        lines[3] == "  rows       400 compared, 0 that only the candidate refused, 0 that only the current version did"
    )
    assert "max_changed         scores   at most 0       0          passed" in [line.rstrip() for line in lines]


def test_a_candidate_that_changed_fails_and_says_where(tmp_path: Path) -> None:
    write_output("one.zarr")
    write_output("two.jsonl", version=2, noise=0.5, refused=4)
    result = call("one.zarr", "two.jsonl", "--html", "page.html")
    assert result.exit_code == 1 and result.stderr == "wrote page.html\n"
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["failed", "3", "of", "6", "checks", "failed"]
    failed = [line[0] for line in lines if line and line[-1] == "failed" and line[0] != "failed"]
    assert failed == ["max_quarantined", "max_label_changes", "min_cosine"]
    assert "396 compared, 4 that only the candidate refused" in result.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    loose = [f"--gate={name}" for name in ("max_quarantined=0.01", "max_label_changes=none", "min_cosine=0.5")]
    assert call("one.zarr", "two.jsonl", *loose).exit_code == 0


def test_json_is_the_report() -> None:
    write_output("one.zarr")
    write_output("two.zarr", version=2, noise=0.5)
    for output, code in (("one.zarr", 0), ("two.zarr", 1)):
        result = call("one.zarr", output, "--json", "--gate", "min_rows=7")
        assert result.exit_code == code and len(result.stdout.splitlines()) == 1
        report = GateReport.model_validate_json(result.stdout)
        assert report.verdict == ("failed" if code else "passed") and report.gate.min_rows == 7
        assert report == api.compare("one.zarr", output, Gate(min_rows=7)).model_copy(
            update={"created": report.created, "digest": report.digest}
        )


def test_partitions_may_differ() -> None:
    write_output("one.zarr", size=400)
    write_output("same.zarr", size=400, noise=0.2)
    whole = api.compare("one.zarr", "same.zarr")
    # The same rows, cut otherwise.
    rewrite("same.zarr", "cut.parquet", 70)
    cut = api.compare("one.zarr", "cut.parquet")
    assert cut.rows == whole.rows == 400
    for one, other in zip(whole.fields, cut.fields, strict=True):
        assert (one.close, one.largest_difference, one.furthest, one.labels, one.drift) == (
            other.close, other.largest_difference, other.furthest, other.labels, other.drift
        )  # fmt: skip
        if one.mean_cosine is not None:
            assert one.mean_cosine == pytest.approx(other.mean_cosine)


def rewrite(source: str, target: str, size: int) -> None:
    """Write an output of one partition again, in partitions of another size."""
    from daskinfer.storage.outputs.reading import open_output

    whole = open_output(source).read(0)
    rows = whole.partition.rows
    sink = open_sink(target, "auto", JOB, FIELDS, {"id": "string"}, size, rows, {})
    for number, first in enumerate(range(0, rows, size)):
        count = min(size, rows - first)
        part = OutputPart(
            Partition(number=number, first_row=first, rows=count, segments=()),
            np.arange(count, dtype=np.int32),
            {name: values[first : first + count] for name, values in whole.arrays.items()},
            whole.kept.slice(first, count),
            (),
        )
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({"inputs": "sha256:0"})


def test_what_cannot_be_compared_is_2() -> None:
    write_output("one.zarr")
    write_output("wide.zarr", width=4)
    write_output("short.zarr", rows=399)
    cases = {
        "wide.zarr": "do not have the same columns: scores (float32[3] and float32[4])",
        "short.zarr": "are not of the same rows: they have 400 and 399",
        "nosuch.zarr": "nosuch.zarr is not a finished output: it has no _MANIFEST.json",
    }
    for candidate, message in cases.items():
        result = call("one.zarr", candidate, "--json")
        assert result.exit_code == 2 and message in result.stderr
        assert json.loads(result.stdout)["code"] == 2


@pytest.mark.parametrize(
    ("gate", "message", "hint"),
    [
        ("max_chaged=1", "there is no threshold max_chaged", "Did you mean max_changed?"),
        ("x=1", "there is no threshold x", "There are: tolerance, max_changed"),
        ("max_nan", "KEY=VALUE is wanted", "For example"),
        ("max_nan=2", "max_nan=2: Input should be less than or equal to 1", "max_nan: Rows that may have NaN"),
        ("min_cosine=much", "min_cosine=much: Input should be a valid number", "min_cosine: Least mean cosine"),
        ("min_rows=none", "min_rows=none: Input should be a valid integer", "min_rows: Fewest rows"),
    ],
)
def test_wrong_thresholds_are_2(gate: str, message: str, hint: str) -> None:
    result = call("one.zarr", "two.zarr", "--gate", gate)
    assert result.exit_code == 2 and message in result.stderr and hint in result.stderr


def test_help_names_every_threshold_with_its_default() -> None:
    text = call("--help").stdout
    for name, field in Gate.model_fields.items():
        default = "none" if field.default is None else f"{field.default:g}"
        assert f" {name}={default} " in text


def test_damage_is_1() -> None:
    write_output("one.zarr")
    write_output("two.jsonl", version=2)
    path = Path("two.jsonl/part-00000002.jsonl")
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    result = call("one.zarr", "two.jsonl")
    assert result.exit_code == 1 and result.stdout == "" and "partition 2 of" in result.stderr


def test_memory_is_that_of_a_partition() -> None:
    peaks = []
    for parts in (3, 12):
        for name in ("one", "two"):
            write_output(f"{name}-{parts}.zarr", rows=1000 * parts, size=1000, width=200)
        tracemalloc.start()
        report = api.compare(f"one-{parts}.zarr", f"two-{parts}.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.verdict == "passed" and report.rows == 1000 * parts
    assert peaks[1] < 1.2 * peaks[0]
