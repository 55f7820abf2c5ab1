from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from daskinfer.errors import InputError
from daskinfer.spec.job import digest_files
from daskinfer.spec.recipe import Input
from daskinfer.spec.rows import ArrayColumn, PartitionTable, Want
from daskinfer.storage.inputs.files import find_input
from daskinfer.storage.inputs.index import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.outputs.choice import open_sink
from daskinfer.storage.rows import RowBatch
from daskinfer.storage.urls import is_local, join_url
from daskinfer.testing.sinks import FIELDS, JOB, KEEP, METADATA, PARTITION_ROWS, ROWS, make_part, make_record

PIXELS = np.random.default_rng(0).integers(0, 255, (10, 6, 4, 3)).astype(np.uint8)


def open_store(url: str) -> Store:
    if is_local(url):
        return LocalStore(url)
    return FsspecStore.from_url(url, storage_options={"use_listings_cache": False})


def make_group(url: str, zarr_format: Any = 3) -> Any:
    group = zarr.open_group(open_store(url), mode="w", zarr_format=zarr_format)
    for name, values, chunks in (
        ("pixels", PIXELS, (3, 4, 4, 3)),
        ("half", np.arange(20).reshape(10, 2).astype(np.float16), (4, 2)),
        ("flag", np.arange(10) % 2 == 0, (10,)),
        ("id", np.arange(10, dtype=np.int32), (2,)),
        ("other", np.zeros(7), (7,)),
    ):
        group.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
    if zarr_format == 3:
        texts = group.create_array("text", shape=(10,), chunks=(4,), dtype="string")
        texts[...] = np.array([f"tëxt {i}" for i in range(10)], object)
        group.create_array("deep/sharded", shape=(10, 2), chunks=(1, 2), shards=(5, 2), dtype="int64")[...] = 7
    return group


def index(url: str | Path, wants: dict[str, Want], keep: tuple[str, ...] = (), rows: int = 4) -> PartitionTable:
    return index_input(Input(url=str(url), partition_rows=rows), wants, keep)


def read_all(table: PartitionTable) -> list[RowBatch]:
    return [read_partition(partition_source(table, partition.number)) for partition in table.partitions]


def gather(batches: list[RowBatch], column: str) -> Any:
    return np.concatenate([batch.arrays[column] for batch in batches])


def test_a_group_is_read_from_any_store(any_store: str) -> None:
    url = join_url(any_store, "in")  # its metadata, not its suffix, tells what it is
    make_group(url)
    wants: dict[str, Want] = {"pixels": "image", "half": "array", "flag": "array", "text": "text"}
    table = index(url, {**wants, "deep/sharded": "array"}, ("id",))
    assert (table.format, table.rows, [partition.rows for partition in table.partitions]) == ("zarr", 10, [4, 4, 2])
    assert table.arrays == {
        "pixels": ArrayColumn(dtype="uint8", shape=(6, 4, 3)),
        "half": ArrayColumn(dtype="float16", shape=(2,)),
        "flag": ArrayColumn(dtype="bool", shape=()),
        "deep/sharded": ArrayColumn(dtype="int64", shape=(2,)),
    }
    assert (table.columns, table.reads) == ({"text": "string", "id": "int32"}, ("text",))
    assert digest_files(find_input(Input(url=url)).files) == digest_files(table.files)
    batches = [pickle.loads(pickle.dumps(batch)) for batch in read_all(table)]
    assert np.array_equal(gather(batches, "pixels"), PIXELS)
    assert gather(batches, "half").dtype == np.float16 and gather(batches, "half")[:, 1].tolist() == [*range(1, 20, 2)]
    assert gather(batches, "flag").tolist() == [True, False] * 5
    assert (gather(batches, "deep/sharded") == 7).all()
    assert [text for batch in batches for text in batch.values("text")] == [f"tëxt {i}" for i in range(10)]
    assert batches[1].table.column("id").to_pylist() == [4, 5, 6, 7]
    assert batches[1].lines.tolist() == [5, 6, 7, 8]


def test_the_second_version_of_the_format_is_read(tmp_path: Path) -> None:
    make_group(str(tmp_path / "in.zarr"), zarr_format=2)
    table = index(tmp_path / "in.zarr", {"pixels": "array", "id": "array"})
    assert np.array_equal(gather(read_all(table), "pixels"), PIXELS)
    chunks = {Path(file.url).name for file in partition_source(table, 1).files[0]}
    assert {"1.0.0.0", "2.1.0.0", ".zarray"} <= chunks and "0.0.0.0" not in chunks


def test_a_single_array_takes_the_name_that_is_wanted(tmp_path: Path) -> None:
    zarr.create_array(LocalStore(str(tmp_path / "x")), shape=(5, 2), chunks=(2, 2), dtype=">f4")[...] = 1.5
    for wants in ({"array": "array"}, {"pixel_values": "array"}):
        table = index(tmp_path / "x", wants)  # type: ignore[arg-type]
        (column,) = table.arrays
        assert column in wants and gather(read_all(table), column).tolist() == [[1.5, 1.5]] * 5
        assert table.arrays[column].dtype == "float32"
    with pytest.raises(InputError, match=r"has no column 'a'; it has array"):
        index(tmp_path / "x", {"a": "array", "b": "array"})


def test_a_chunk_that_changed_is_noticed_by_the_partitions_that_it_is_in(any_store: str) -> None:
    group = make_group(join_url(any_store, "in.zarr"))
    table = index(join_url(any_store, "in.zarr"), {"half": "array", "pixels": "array"})
    digest = digest_files(table.files)
    group["half"][4] = 99
    assert len(read_partition(partition_source(table, 0))) == 4
    with pytest.raises(InputError, match=r"half/c/1/0 changed while the job ran"):
        read_partition(partition_source(table, 1))
    assert len(read_partition(partition_source(table, 2))) == 2
    group["half"].resize((20, 2))
    with pytest.raises(InputError, match=r"half/zarr\.json changed while the job ran"):
        read_partition(partition_source(table, 2))
    assert digest_files(find_input(Input(url=join_url(any_store, "in.zarr"))).files) != digest


def test_a_lost_chunk_is_no_row_of_zeros(tmp_path: Path) -> None:
    make_group(str(tmp_path / "in.zarr"))
    table = index(tmp_path / "in.zarr", {"half": "array"})
    (tmp_path / "in.zarr" / "half" / "c" / "0" / "0").unlink()
    with pytest.raises(InputError, match="it is gone"):
        read_all(table)


def test_a_chunk_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    make_group(str(tmp_path / "in.zarr"))
    (tmp_path / "in.zarr" / "half" / "c" / "0" / "0").write_bytes(b"nonsense")
    table = index(tmp_path / "in.zarr", {"half": "array"})
    with pytest.raises(InputError, match=r"array 'half' of .*: rows 0 to 4 cannot be decoded"):
        read_all(table)


def test_an_output_is_an_input(tmp_path: Path) -> None:
    url = str(tmp_path / "out.zarr")
    sink = open_sink(url, "zarr", JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
    sink.create()
    for number in range(3):
        part = make_part(number, (1,) if number == 1 else ())
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({})
    table = index(url, {"embedding": "array", "valid": "array"}, ("id", "weight", "seen"))
    assert table.rows == ROWS and not [file.url for file in table.files if "/_" in file.url]
    batches = read_all(table)
    valid = gather(batches, "valid")
    assert valid.tolist() == [row != 5 for row in range(ROWS)]
    assert np.isnan(gather(batches, "embedding")[5]).all()
    batches = read_all(index(url, {"title": "text"}))
    assert batches[0].values("title") == ['"0"', '"1"', '"2"', '"3"']
    assert [reject.row for batch in batches for reject in batch.rejects] == [5]  # a refused row's text is empty
    with pytest.raises(InputError, match=r"has no column 'titel'; it has .*title.*valid.*\nDid you mean 'title'"):
        index(url, {"titel": "text"})


@pytest.mark.parametrize(
    ("wants", "keep", "message"),
    [
        ({"half": "array", "other": "array"}, (), "differ in length: 'half' has 10, 'other' has 7 rows"),
        ({"halt": "array"}, (), r"input\.columns\.halt: .* it has flag, half, id, .*\nDid you mean 'half'"),
        ({"deep": "array"}, (), "has no column 'deep'"),
        ({"text": "array"}, (), "array 'text' of .* holds StringDType.*, not numbers"),
        ({"half": "text"}, (), r"holds float16 of shape \(2,\) a row, not one string a row"),
        ({"half": "image"}, (), "holds float16 of shape .* a row, not images"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, wants: dict[str, Want], keep: tuple[str, ...], message: str
) -> None:
    make_group(str(tmp_path / "in.zarr"))
    with pytest.raises(InputError, match=message) as caught:
        index(tmp_path / "in.zarr", wants, keep)
    assert caught.value.hint


def test_places_that_are_no_zarr_are_named(tmp_path: Path) -> None:
    (tmp_path / "in.zarr").mkdir()
    with pytest.raises(InputError, match=r"is no Zarr group or array: there is none of zarr\.json"):
        index(tmp_path / "in.zarr", {"x": "array"})
    (tmp_path / "in.zarr" / "zarr.json").write_text("nonsense")
    with pytest.raises(InputError, match="cannot be read as zarr"):
        index(tmp_path / "in.zarr", {"x": "array"})
    zarr.create_array(LocalStore(str(tmp_path / "one.zarr")), shape=(), dtype="float32")
    with pytest.raises(InputError, match="is a single value and has no rows"):
        index(tmp_path / "one.zarr", {"x": "array"})
    zarr.create_array(LocalStore(str(tmp_path / "none.zarr")), shape=(0, 3), dtype="float32")
    with pytest.raises(InputError, match="has no rows"):
        index(tmp_path / "none.zarr", {"x": "array"})
