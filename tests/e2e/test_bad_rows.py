"""Bad and odd rows, every input format, classes, and disks that fill up in mid-run, through the command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskinfer import api
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.command import call, start
from tests.e2e.conftest import Bench, data_bytes, read_output, run, write_rows
from tests.e2e.faults import commits

pytestmark = pytest.mark.late


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def leave(disk: Path, size: int) -> Path:
    """Fill a disk until only so many bytes are left."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - size))
    return filler


BAD_JSONL: tuple[tuple[bytes, str], ...] = (
    (b'{"id": "bad", "text": ', "not valid JSON"),
    (b'["a", "list"]', "expected a JSON object, got a list"),
    (b'{"id": "bad", "text": null}', "column 'text': is null"),
    (b'{"id": "bad", "text": 7}', "column 'text': expected a string, got the number 7"),
    (b'{"id": "bad"}', "column 'text' is missing"),
    (b'{"id": "bad", "text": "\xff"}', "not valid UTF-8"),
    (b'{"id": "bad", "text": "\\ud800"}', "lone surrogate"),
    (b'{"id": "\\udc00", "text": "fine"}', "lone surrogate"),
    (b'{"id": "bad", "text": ""}', "column 'text': is empty"),
    (b'{"id": "bad", "text": " \\t "}', "column 'text': holds only whitespace"),
    (b'{"id": "bad", "text": "a\\u0000b"}', "column 'text': holds a NUL character"),
)
ODD_TEXTS = (
    "\u200b",
    "the cat " * 130_000,
    "\U0001f63a \U0001f1e9\U0001f1ea",
    "猫は寝ている。",
    "\u200b\ufeff",
)


def write_odd_rows(bench: Bench) -> list[int]:
    """Mix bad and odd rows into the input; return the positions of the bad ones."""
    path = bench.folder / "in.jsonl"
    rows = path.read_bytes().splitlines()
    bad = [3 + 25 * number for number in range(len(BAD_JSONL))]
    for place, (row, _) in zip(bad, BAD_JSONL, strict=True):
        rows[place] = row
    for number, text in enumerate(ODD_TEXTS):
        rows[10 + number] = json.dumps({"id": f"row-{10 + number}", "text": text}).encode()
    path.write_bytes(b"\n".join(rows) + b"\n")
    return bad


def test_bad_rows_are_quarantined_and_odd_ones_computed(warm: Bench) -> None:
    bad = write_odd_rows(warm)
    # Longer than the model's 64 positions: it reads as many as it can.
    ended = start(warm, errors__max_rows=11, model__options__max_length=5000)
    assert ended.code == 0, ended.err
    found = ended.json
    assert (found["rows_in"], found["rows_out"], found["rows_quarantined"]) == (300, 289, 11)
    assert "11 quarantined" in ended.err
    # One text is longer than that.
    assert found["rows_truncated"] >= 1
    assert f"{found['rows_truncated']} truncated" in ended.err
    quarantine = warm.folder / "out.zarr/_quarantine"
    rejects = [json.loads(line) for path in sorted(quarantine.iterdir()) for line in path.read_text().splitlines()]
    assert [(reject["row"], reject["line"]) for reject in rejects] == [(place, place + 1) for place in bad]
    for reject, (_, error) in zip(rejects, BAD_JSONL, strict=True):
        assert error in reject["error"]
    arrays = read_output(warm.folder / "out.zarr")
    assert np.flatnonzero(~arrays["valid"]).tolist() == bad
    assert np.isfinite(arrays["embedding"]).all(axis=1).tolist() == arrays["valid"].tolist()
    # Texts of special tokens alone are equal, whatever they looked like.
    assert np.allclose(arrays["embedding"][10], arrays["embedding"][14], atol=1e-6)
    shown = call("report", found["job"], cwd=warm.folder)
    assert "300 in = 289 out + 11 quarantined" in shown.out
    assert f"{warm.folder}/in.jsonl:4: not valid JSON" in shown.out
    assert f", and 10 more in {warm.folder}/out.zarr/_quarantine\n" in shown.out
    assert f"{warm.folder}/in.jsonl:4: not valid JSON" in call("report", found["job"], "--json", cwd=warm.folder).out


def test_beyond_the_budget_it_stops_and_goes_on_when_that_is_raised(warm: Bench) -> None:
    write_odd_rows(warm)
    ended = start(warm, errors__max_rows=3)
    assert ended.code == 4
    assert "rows are quarantined; errors.max_rows allows 3" in ended.err
    assert f"{warm.folder}/in.jsonl:4: not valid JSON" in ended.err
    assert f"the quarantine: {warm.folder}/out.zarr/_quarantine" in ended.err
    assert "To resume:" not in ended.err
    assert "--set errors.max_rows=N" in ended.err
    assert ended.json["verdict"] == "over budget"
    assert ended.json["resume"] is None
    assert ended.json["report"] is not None
    assert "the same command would stop there again" in call("status", ended.json["job"], cwd=warm.folder).out
    stood = call("status", ended.json["job"], "--json", cwd=warm.folder).json
    records = commits(warm.folder / "out.zarr").values()  # workers commit what they had begun when the driver ended
    assert stood["rows_quarantined"] == sum(record["rows_quarantined"] for record in records)
    assert stood["rows_done"] == sum(record["rows_in"] for record in records)
    assert start(warm, errors__max_rows=3).code == 4
    resumed = start(warm, errors__max_rows=0.5)
    assert resumed.code == 0, resumed.err
    assert resumed.json["job"] == ended.json["job"]
    assert (resumed.json["rows_out"], resumed.json["rows_quarantined"]) == (289, 11)
    start(warm, errors__max_rows=0.5, output__url="undisturbed.zarr")
    assert data_bytes(warm.folder / "out.zarr") == data_bytes(warm.folder / "undisturbed.zarr")


def test_partitions_without_rows_and_of_one_row(warm: Bench) -> None:
    rows = [json.dumps({"id": str(number), "text": "the cat"}) for number in range(33)]
    rows[16:32] = ["{"] * 16
    (warm.folder / "in.jsonl").write_text("\n".join(rows))
    for output in ("out.zarr", "out.parquet", "out.jsonl"):
        ended = start(warm, input__partition_rows=16, errors__max_rows=16, output__url=output)
        assert ended.code == 0, ended.err
        assert (ended.json["rows_out"], ended.json["rows_quarantined"]) == (17, 16)
    assert read_output(warm.folder / "out.zarr")["valid"].tolist() == [True] * 16 + [False] * 16 + [True]
    table = pq.read_table(sorted((warm.folder / "out.parquet").glob("*.parquet")))
    assert table["id"].to_pylist() == [*map(str, range(16)), "32"]
    (warm.folder / "in.jsonl").write_text("\n".join(rows[:16]))
    assert start(warm, input__partition_rows=16, output__url="even.zarr").json["rows_out"] == 16


def test_bad_csv_rows(warm: Bench) -> None:
    lines = ["id,text", "1,the cat", "2,the cat,sat", '3,"a ""quoted"" dog"', "4", "5,"]
    (warm.folder / "in.csv").write_text("\n".join(lines))
    ended = start(warm, input__url="in.csv", errors__max_rows=3)
    assert ended.code == 0, ended.err
    assert (ended.json["rows_out"], ended.json["rows_quarantined"]) == (2, 3)
    (quarantine,) = (warm.folder / "out.zarr/_quarantine").iterdir()
    rejects = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [3, 5, 6]
    assert "3 fields where the header has 2" in rejects[0]["error"]
    assert "column 'text': is empty" in rejects[2]["error"]


def test_every_format_gives_the_same_embeddings(bench: Bench, scheduler: str) -> None:
    texts = [json.loads(line)["text"] for line in (bench.folder / "in.jsonl").read_text().splitlines()]
    (bench.folder / "in.txt").write_text("\n".join(texts))
    (bench.folder / "in.csv").write_text(
        "id,text\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(texts))
    )
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), bench.folder / "in.parquet", row_group_size=70)
    found = {}
    for suffix in ("jsonl", "txt", "csv", "parquet"):
        recipe = bench.recipe(f"{suffix}.zarr", input__url=str(bench.folder / f"in.{suffix}"), output__keep=[])
        run(recipe, scheduler)
        found[suffix] = read_output(bench.folder / f"{suffix}.zarr")["embedding"].tobytes()
    assert len(set(found.values())) == 1


def test_classify_as_transformers_does(warm: Bench) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = make_tiny_bert(warm.folder / "clf", layers=2, architecture="BertForSequenceClassification")
    api.publish("clf", str(model), registry=str(warm.folder / "work/registry"), alias="prod")
    write_rows(warm.folder / "in.jsonl", 40)
    for output in ("out.zarr", "out.parquet", "out.jsonl"):
        changes = {"model__checkpoint": "clf@prod", "model__task": "classify", "output__url": output}
        ended = start(warm, **changes)
        assert ended.code == 0, ended.err
    arrays = read_output(warm.folder / "out.zarr")
    texts = [json.loads(line)["text"] for line in (warm.folder / "in.jsonl").read_text().splitlines()]
    tokens = AutoTokenizer.from_pretrained(model)(
        texts, padding=True, truncation=True, max_length=48, return_tensors="pt"
    )
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        expected = classifier(**tokens).logits.softmax(-1).numpy()
    assert np.abs(arrays["scores"] - expected).max() < 1e-5
    assert arrays["label"].tolist() == [classifier.config.id2label[best] for best in expected.argmax(1)]
    assert np.array_equal(arrays["score"], arrays["scores"].max(axis=1))
    table = pq.read_table(sorted((warm.folder / "out.parquet").glob("*.parquet")))
    parts = sorted((warm.folder / "out.jsonl").glob("*.jsonl"))
    lines = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
    for name in ("label", "score", "scores"):
        assert np.array_equal(np.array(table[name].to_pylist(), arrays[name].dtype), arrays[name])
        assert np.array_equal(np.array([line[name] for line in lines], arrays[name].dtype), arrays[name])


def test_an_output_disk_that_fills_up(warm: Bench, small_disk: Path) -> None:
    filler = leave(small_disk, 80_000)
    output = str(small_disk / "out.zarr")
    ended = start(warm, output__url=output)
    assert ended.code == 1
    assert f"no space left on {small_disk}" in ended.err
    assert "Free some space" in ended.err
    assert "To resume:" in ended.err
    filler.unlink()
    resumed = start(warm, output__url=output)
    assert resumed.code == 0, resumed.err
    assert resumed.json["job"] == ended.json["job"]
    start(warm, output__url="undisturbed.zarr")
    assert data_bytes(Path(output)) == data_bytes(warm.folder / "undisturbed.zarr")


@pytest.mark.parametrize("left", [0, 300_000])
def test_a_workspace_disk_that_fills_up(warm: Bench, small_disk: Path, left: int) -> None:
    filler = leave(small_disk, left)
    changes = {
        "workspace": str(small_disk),
        "model__registry": str(warm.folder / "work/registry"),
        "pipeline__activations__transport": "zarr",
    }
    ended = start(warm, **changes)
    assert ended.code == 1, ended.err
    assert f"no space left on {small_disk}" in ended.err
    filler.unlink()
    resumed = start(warm, **changes)
    assert resumed.code == 0, resumed.err
    start(warm, output__url="undisturbed.zarr", pipeline__activations__transport="zarr")
    assert data_bytes(warm.folder / "out.zarr") == data_bytes(warm.folder / "undisturbed.zarr")
