from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import zarr

from daskinfer.errors import RecipeError
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.rows import Partition
from daskinfer.storage.objects.filesystem import list_names
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.formats import choose_output_format, open_sink
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.outputs.sink import OutputPart, Sink
from daskinfer.storage.outputs.tables import encode_jsonl
from daskinfer.testing.contracts.sinks import (
    FIELDS,
    JOB,
    KEEP,
    METADATA,
    PARTITION_ROWS,
    ROWS,
    SinkContract,
    make_part,
    make_record,
)


def open_contract_sink(url: str, format: str) -> Sink:
    return open_sink(url, format, JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)


class TestParquet(SinkContract):
    def open(self, url: str) -> Sink:
        return open_contract_sink(url, "parquet")

    def read(self, url: str) -> dict[str, list[Any]]:
        table = ds.dataset(url, format="parquet").to_table()
        assert table.column_names == ["row", *KEEP, *(field.name for field in FIELDS)]
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
        assert {key.decode(): value.decode() for key, value in table.schema.metadata.items()} == METADATA
        columns: dict[str, list[Any]] = table.to_pydict()
        return columns


class TestJsonl(SinkContract):
    def open(self, url: str) -> Sink:
        return open_contract_sink(url, "jsonl")

    def read(self, url: str) -> dict[str, list[Any]]:
        lines = [line for path in sorted(Path(url).glob("*.jsonl")) for line in path.read_text().splitlines()]
        rows = [json.loads(line) for line in lines]
        assert all(list(row) == ["row", *KEEP, *(field.name for field in FIELDS)] for row in rows)
        return {name: [row[name] for row in rows] for name in rows[0]}


class TestZarr(SinkContract):
    def open(self, url: str) -> Sink:
        return open_contract_sink(url, "zarr")

    def read(self, url: str) -> dict[str, list[Any]]:
        group = zarr.open_group(url, mode="r")
        arrays: dict[str, Any] = dict(group.arrays())
        assert dict(group.attrs) == {"daskinfer_job": "job-1", **METADATA}
        assert all(array.shape[0] == ROWS and array.chunks[0] == PARTITION_ROWS for array in arrays.values())
        valid = arrays.pop("valid")[:]
        assert np.isnan(arrays["embedding"][:][~valid]).all() and (arrays["label"][:][~valid] == "").all()
        return {"row": np.flatnonzero(valid).tolist()} | {
            name: array[:][valid].tolist() for name, array in arrays.items()
        }


@pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
def test_sinks_work_on_any_store_and_travel(any_store: str, format: str) -> None:
    url = join_url(any_store, "out")
    sink: Sink = pickle.loads(pickle.dumps(open_contract_sink(url, format)))
    sink.create()
    for number in range(3):
        part = make_part(number, (0, 1, 2, 3) if number == 1 else ())
        sink.commit(make_record(part, sink.write(part)))
    assert [record.partition for record in sink.committed()] == [0, 1, 2]
    sink.seal({})
    manifest = read_manifest(url)
    assert manifest is not None and manifest["rows_quarantined"] == 4
    if format == "zarr":
        valid: Any = zarr.open_group(url, mode="r")["valid"]
        assert valid[:].sum() == 6
    sink.discard()
    assert set(list_names(url)) <= {"_daskinfer"}  # an empty folder stays on disk


def test_a_partition_of_refused_rows_still_has_its_chunk(tmp_path: Path) -> None:
    sink = open_contract_sink(str(tmp_path), "zarr")
    sink.create()
    sink.write(make_part(1, (0, 1, 2, 3)))
    assert (tmp_path / "embedding" / "c" / "1" / "0").stat().st_size == PARTITION_ROWS * 3 * 4
    assert (tmp_path / "label" / "c" / "1").is_file()


def test_a_part_without_rows_is_a_part(tmp_path: Path) -> None:
    for format in ("parquet", "jsonl"):
        sink = open_contract_sink(str(tmp_path / format), format)
        part = make_part(0, (0, 1, 2, 3))
        sink.commit(make_record(part, sink.write(part)))
    assert pq.read_table(tmp_path / "parquet" / "part-00000000.parquet").num_rows == 0
    assert (tmp_path / "jsonl" / "part-00000000.jsonl").read_text() == "\n"


def test_floats_in_jsonl_are_short_and_exact() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.array([0.1, 1, 1e-5, -0.0, np.nan, np.inf], np.float32)])
    lines = encode_jsonl(pa.table({"100% of\nx": pa.array(values)})).decode().split("\n")[:-1]
    found = [json.loads(line)["100% of\nx"] for line in lines]
    finite = np.isfinite(values)
    assert np.array_equal(np.array(found, object)[finite].astype(np.float32), values[finite])
    assert all(found[index] is None for index in np.flatnonzero(~finite))
    assert lines[5000].endswith(":0.1}")


@pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_every_kind_comes_back_in_any_shape(tmp_path: Path, format: str, shape: tuple[int, ...]) -> None:
    whole = np.arange(4 * math.prod(shape)).reshape(4, *shape)
    kinds: dict[str, Any] = {
        "float32": np.where(whole == 1, np.nan, whole / 3).astype(np.float32),
        "float64": np.where(whole == 1, np.nan, whole / 3),
        "int64": whole - 2**40,
        "int32": (whole - 2**20).astype(np.int32),
        "uint8": whole.astype(np.uint8),
        "bool": whole % 2 == 0,
        "string": np.array([f"ä{value}" for value in whole.flat], object).reshape(whole.shape),
    }
    fields = [OutputField.model_validate({"name": kind, "kind": kind, "shape": shape}) for kind in kinds]
    sink = open_sink(str(tmp_path), format, JOB, fields, {}, 4, 4, {})
    sink.create()
    partition = Partition(number=0, first_row=0, rows=4, segments=())
    sink.write(OutputPart(partition, np.arange(4, dtype=np.int32), kinds, pa.table({}), ()))
    if format == "zarr":
        group: Any = zarr.open_group(tmp_path, mode="r")
        found = {kind: group[kind][:].tolist() for kind in kinds}
    elif format == "parquet":
        found = pq.read_table(tmp_path / "part-00000000.parquet").to_pydict()
    else:
        rows = [json.loads(line) for line in (tmp_path / "part-00000000.jsonl").read_text().splitlines()]
        found = {kind: [row[kind] for row in rows] for kind in kinds}
    for kind, values in kinds.items():
        if kind.startswith("float"):
            assert np.array_equal(np.array(found[kind], float).astype(kind), values, equal_nan=True)
        else:
            assert found[kind] == values.tolist()


@pytest.mark.parametrize(
    ("format", "column"),
    [
        ("zarr", "valid"),
        ("zarr", "a/b"),
        ("zarr", "_MANIFEST.json"),
        ("zarr", "é" * 128),
        ("jsonl", "row"),
        ("parquet", "embedding"),
    ],
)
def test_names_that_cannot_be_kept_are_refused(format: str, column: str) -> None:
    with pytest.raises(RecipeError, match=f"output.keep: the name '{column}'"):
        open_sink("out", format, JOB, FIELDS, {column: "string"}, 4, 10, {})


def test_the_suffix_names_the_format() -> None:
    assert [choose_output_format(f"s3://b/x.{name}/") for name in ("zarr", "parquet", "jsonl")] == [
        "zarr",
        "parquet",
        "jsonl",
    ]
    assert choose_output_format("x.zarr", "jsonl") == "jsonl"
    with pytest.raises(RecipeError, match=r"output\.format"):
        choose_output_format("results/")
