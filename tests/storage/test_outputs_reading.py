"""What was written is read back, from every format and every store, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from daskinfer.errors import Incomparable, IntegrityError
from daskinfer.spec.job import OutputField
from daskinfer.spec.rows import Partition, Reject
from daskinfer.storage.filesystem import delete
from daskinfer.storage.outputs.choice import open_sink
from daskinfer.storage.outputs.quarantine import read_quarantine
from daskinfer.storage.outputs.reading import open_output, read_part
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart
from daskinfer.storage.urls import join_url
from daskinfer.testing.sinks import FIELDS, JOB, KEEP, METADATA, PARTITION_ROWS, ROWS, make_part, make_record

FORMATS = ("zarr", "parquet", "jsonl")
LAYOUT = OutputLayout(JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
REFUSED = {1: (1,), 2: (0, 1)}


def write_contract(url: str, format: str) -> None:
    sink = open_sink(url, format, JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
    sink.create()
    for number in range(3):
        part = make_part(number, REFUSED.get(number, ()))
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({"checkpoint": "tiny@v1", "snapshot": "sha256:1"})


def assert_same(found: OutputPart, wanted: OutputPart) -> None:
    assert found.partition == wanted.partition
    assert np.array_equal(found.rows, wanted.rows) and found.positions.dtype == np.int32
    assert set(found.arrays) == set(wanted.arrays)
    for name, values in wanted.arrays.items():
        assert found.arrays[name].dtype == values.dtype and found.arrays[name].shape == values.shape
        assert found.arrays[name].tolist() == values.tolist()
    assert found.kept.column_names == wanted.kept.column_names
    for name in KEEP:
        assert repr(found.kept[name].to_pylist()) == repr(wanted.kept[name].to_pylist())
    assert found.rejects == wanted.rejects


@pytest.mark.parametrize("format", FORMATS)
def test_parts_come_back_as_they_were_written(any_store: str, format: str) -> None:
    url = join_url(any_store, "out")
    write_contract(url, format)
    output = open_output(url)
    assert output.layout.fields == FIELDS and output.layout.keep == KEEP and output.layout.rows == ROWS
    assert output.layout.metadata["checkpoint"] == "tiny@v1"
    for part in output.parts:
        # By a job's own records, as well as by the manifest.
        found = read_part(url, LAYOUT, part.partition, part.path, part.digest)
        assert_same(found, make_part(part.partition, REFUSED.get(part.partition, ())))
    assert_same(output.read(1), make_part(1, REFUSED[1]))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("rows", [0, 3])
def test_every_kind_comes_back_in_any_shape(tmp_path: Path, format: str, shape: tuple[int, ...], rows: int) -> None:
    whole = np.arange(rows * math.prod(shape)).reshape(rows, *shape)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 1 / 3])[whole % 6]
    kinds: dict[str, Any] = {
        "float32": odd.astype(np.float32),
        "float64": odd * 1e300,
        "int64": whole - 2**53 - 1,
        "int32": (whole - 2**20).astype(np.int32),
        "uint8": whole.astype(np.uint8),
        "bool": whole % 2 == 0,
        "string": np.array([f'ä"\u2028\n{value}' for value in whole.flat], object).reshape(whole.shape),
    }
    fields = tuple(OutputField.model_validate({"name": kind, "kind": kind, "shape": shape}) for kind in kinds)
    sink = open_sink(str(tmp_path), format, JOB, fields, {}, 4, 4, {})
    sink.create()
    partition = Partition(number=0, first_row=0, rows=4, segments=())
    positions = np.array([0, 2, 3], np.int32)[:rows]
    refused = [position for position in range(4) if position not in positions]
    rejects = tuple(Reject(position, "in.jsonl", 1, "bad\u2028", "{") for position in refused)
    written = sink.write(OutputPart(partition, positions, kinds, pa.table({}), rejects))
    layout = OutputLayout(JOB, fields, {}, 4, 4, {})
    found = read_part(str(tmp_path), layout, 0, written.path, written.digest)
    assert found.rows.tolist() == positions.tolist() and found.rejects == rejects
    assert tuple(read_quarantine(str(tmp_path), 10)) == rejects
    for kind, values in kinds.items():
        expected = values
        if format == "jsonl" and kind.startswith("float"):
            expected = np.where(np.isfinite(values), values, np.nan)  # JSON knows neither
        read = found.arrays[kind]
        assert read.dtype == values.dtype and read.shape == (rows, *shape)
        if kind.startswith("float"):
            assert np.array_equal(read, expected, equal_nan=True)
        else:
            assert read.tolist() == values.tolist()


def find_data(folder: Path, format: str) -> Path:
    return folder / ("embedding/c/1/0" if format == "zarr" else f"part-00000001.{format}")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_part_that_was_changed_is_refused(tmp_path: Path, format: str, harm: str) -> None:
    write_contract(str(tmp_path), format)
    path = find_data(tmp_path, format)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "flip":
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    output = open_output(str(tmp_path))
    output.read(0)
    with pytest.raises(IntegrityError, match="partition 1 of"):
        output.read(1)


def test_what_is_not_whole_is_refused(any_store: str, tmp_path: Path) -> None:
    with pytest.raises(Incomparable, match="is not a finished output"):
        open_output(join_url(any_store, "nothing"))
    url = join_url(any_store, "out")
    write_contract(url, "jsonl")
    delete(join_url(url, "_MANIFEST.json"))
    with pytest.raises(Incomparable, match="is not a finished output"):
        open_output(url)
    write_contract(str(tmp_path), "jsonl")
    manifest = json.loads((tmp_path / "_MANIFEST.json").read_text())
    del manifest["fields"]
    (tmp_path / "_MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(Incomparable, match="does not say what its columns are"):
        open_output(str(tmp_path))
