"""Records and chunks that were made to hurt are refused before they take memory, each by its own guard."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
import zarr
from fsspec import AbstractFileSystem

from daskinfer.errors import InputError, IntegrityError
from daskinfer.ids import make_nonce, refuse_dense
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.jobs import store
from daskinfer.storage.jobs.journal import read_journal
from daskinfer.storage.jobs.lease import read_heartbeat
from daskinfer.storage.jobs.membership import read_member
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.objects import filesystem
from daskinfer.storage.objects.filesystem import read_record, replace_bytes
from daskinfer.storage.objects.plain_store import expands_beyond
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.store_errors import NotOurs
from daskinfer.storage.outputs.formats import open_sink
from daskinfer.storage.outputs.reading import read_part
from daskinfer.testing.contracts.sinks import FIELDS, JOB, KEEP, METADATA, PARTITION_ROWS, ROWS, make_part, make_record

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}
SHARDS: dict[str, Any] = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [4], "codecs": [BYTES], "index_codecs": [BYTES, {"name": "crc32c"}]},
}
DENSE = b"[" + b"[]," * 400_000 + b"1]"
RECORDS: dict[str, tuple[str, Callable[[str], object]]] = {
    "job": ("jobs/j/job.json", lambda url: JobStore(url, "j").record()),
    "table": ("jobs/j/inputs.json.gz", lambda url: JobStore(url, "j").table()),
    "corrected inputs": ("jobs/j/corrected.json", lambda url: JobStore(url, "j").inputs(None)),  # type: ignore[arg-type]
    "report": ("jobs/j/report.json", lambda url: JobStore(url, "j").reports.last()),
    "lease": ("jobs/j/lease.json", lambda url: read_heartbeat(f"{url}/jobs/j")),
    "member": ("jobs/j/members/m.json", lambda url: read_member(f"{url}/jobs/j", "m")),
    "journal": ("jobs/j/journal/0001-000000.jsonl", lambda url: list(read_journal(f"{url}/jobs/j"))),
    "slot": ("jobs/j/control/000000000000.json", lambda url: SlotLog(f"{url}/jobs/j/control").read()),
}


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bomb", ["pipe", "zero", "long", "dense"])
@pytest.mark.parametrize("record", RECORDS)
def test_what_lies_in_the_place_of_a_record_is_refused(tmp_path: Path, record: str, bomb: str) -> None:
    name, read = RECORDS[record]
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    if bomb == "pipe":
        os.mkfifo(path)
    elif bomb == "zero":
        path.symlink_to("/dev/zero")
    elif bomb == "long":
        write_sparse(path)
    else:
        path.write_bytes(gzip.compress(DENSE) if record == "table" else DENSE)
    with pytest.raises((NotOurs, IntegrityError), match=path.name):
        read(str(tmp_path))


def test_json_of_nothing_but_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="nearly nothing but lists"):
        refuse_dense(DENSE)
    refuse_dense(json.dumps([{"path": f"part-{n}", "digest": "0" * 32} for n in range(10_000)]).encode())


def test_no_more_of_a_record_is_read_than_any_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_bytes(b"7" * 2000)
    asked: list[int | None] = []
    before = filesystem._read_range

    def read(system: AbstractFileSystem, path: str, begin: int | None, end: int | None) -> bytes:
        asked.append(end)
        return before(system, path, begin, end)

    monkeypatch.setattr(filesystem, "_read_range", read)
    with pytest.raises(NotOurs, match="more than 1,000 bytes"):
        read_record(str(tmp_path / "a.json"), 1000)
    assert asked == [1001]


def test_a_table_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_EXPANDED", 1000)
    (tmp_path / "jobs/j").mkdir(parents=True)
    (tmp_path / "jobs/j/inputs.json.gz").write_bytes(gzip.compress(b" " * 1_000_000))
    with pytest.raises(IntegrityError, match=r"inputs\.json\.gz"):
        JobStore(str(tmp_path), "j").table()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "numcodecs.bz2": bz2.compress,
    "lzma": lzma.compress,
    "zstd": lambda data: bytes(numcodecs.Zstd().encode(data)),
    "blosc": lambda data: bytes(numcodecs.Blosc().encode(data)),
    "numcodecs.lz4": lambda data: bytes(numcodecs.LZ4().encode(data)),
}


@pytest.mark.parametrize("codec", PACK)
def test_what_a_chunk_becomes_is_known_before_it_is_decoded(codec: str) -> None:
    data = PACK[codec](bytes(5_000_000))
    assert expands_beyond(codec, data, 4_999_999) and not expands_beyond(codec, data, 5_000_000)
    assert not expands_beyond(codec, data[:3], 100) and not expands_beyond(codec, b"", 100)


def test_codecs_of_others_are_not_known() -> None:
    assert not expands_beyond("pcodec", b"anything", 1)


def index(url: Path, name: str = "x") -> Any:
    return index_input(Input(url=str(url), columns={"x": name}), {name: "array"})


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["gzip", "zstd", "blosc"])
def test_a_chunk_that_expands_beyond_its_shape_is_refused(tmp_path: Path, zarr_format: Any, name: str) -> None:
    if zarr_format == 2:
        codec: Any = {"gzip": numcodecs.GZip, "zstd": numcodecs.Zstd, "blosc": numcodecs.Blosc}[name]()
    else:
        from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

        codec = {"gzip": GzipCodec, "zstd": ZstdCodec, "blosc": BloscCodec}[name]()
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    array = group.create_array("x", shape=(8, 4), chunks=(4, 4), dtype="f4", compressors=[codec])
    array[...] = np.arange(32).reshape(8, 4)
    table = index(tmp_path / "a.zarr")
    assert len(read_partition(partition_source(table, 0))) == 8
    chunk = next(path for path in (tmp_path / "a.zarr/x").rglob("*") if path.is_file() and path.name in ("0.0", "0"))
    chunk.write_bytes(PACK[name](bytes(50_000_000)))
    with pytest.raises(InputError, match="bytes become more than the 65,616 that a chunk can have"):
        read_partition(partition_source(index(tmp_path / "a.zarr"), 0))


@pytest.mark.parametrize("rows", [8, 3], ids=["whole", "part"])
@pytest.mark.parametrize("place", ["start", "end"])
def test_a_chunk_in_a_shard_that_expands_beyond_its_shape_is_refused(tmp_path: Path, place: Any, rows: int) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array(
        "x", shape=(8, 4), chunks=(2, 4), dtype="f4", shards={"shape": (8, 4), "index_location": place},
        compressors=[zarr.codecs.GzipCodec()],
    )[...] = np.arange(32).reshape(8, 4)  # fmt: skip

    def read() -> int:
        table = index_input(Input(url=str(tmp_path / "a.zarr"), partition_rows=rows), {"x": "array"})
        return len(read_partition(partition_source(table, 0)))

    assert read() == rows
    shard = tmp_path / "a.zarr/x/c/0/0"
    data, bomb = shard.read_bytes(), gzip.compress(bytes(50_000_000))
    length = 4 * 16 + 4
    at_end = place == "end"
    slots = np.frombuffer(data[-length:-4] if at_end else data[: length - 4], "<u8").reshape(-1, 2).copy()
    slots[1] = len(data), len(bomb)  # the second chunk lies behind the others
    if at_end:
        slots[1, 0] -= length
    stored = slots.tobytes() + google_crc32c.value(slots.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data[:-length] + bomb + stored if at_end else stored + data[length:] + bomb)
    with pytest.raises(InputError, match="bytes become more than the 65,576 that a chunk can have"):
        read()


@pytest.mark.parametrize(
    ("codecs", "said"),
    [
        ([SHARDS, GZIP], "further codecs around its shards, or shards within them"),
        ([SHARDS | {"configuration": SHARDS["configuration"] | {"codecs": [SHARDS]}}], "or shards within them"),
        (
            [SHARDS | {"configuration": SHARDS["configuration"] | {"index_codecs": [BYTES, GZIP]}}],
            "index of its shards",
        ),
    ],
    ids=["around", "within", "index"],
)
@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_shards_whose_chunks_cannot_be_looked_at_are_refused(tmp_path: Path, codecs: Any, said: str) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("x", shape=(8,), chunks=(4,), dtype="f4")
    place = tmp_path / "a.zarr/x/zarr.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"codecs": codecs}))
    with pytest.raises(InputError, match=said):
        index(tmp_path / "a.zarr")


@pytest.mark.parametrize("damage", ["no bytes", "a folder"])
@pytest.mark.parametrize("rows", [8, 3], ids=["whole", "part"])
def test_a_shard_without_bytes_is_not_read_as_fill_values(tmp_path: Path, damage: str, rows: int) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(8,), chunks=(2,), shards=(8,), dtype="i8")[...] = np.arange(8)
    shard = tmp_path / "a.zarr/x/c/0"
    shard.unlink()
    shard.touch() if damage == "no bytes" else shard.mkdir()
    with pytest.raises((InputError, NotOurs), match="x/c/0"):
        table = index_input(Input(url=str(tmp_path / "a.zarr"), partition_rows=rows), {"x": "array"})
        read_partition(partition_source(table, 0))


def test_shards_of_millions_of_chunks_are_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(1 << 22,), chunks=(2,), shards=(1 << 22,), dtype="f4")
    with pytest.raises(InputError, match="claim 2,097,152 chunks a shard, and at most 1,048,576 are read"):
        index(tmp_path / "a.zarr")


def test_compressors_one_in_the_other_are_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    gzips = [zarr.codecs.GzipCodec()] * 2
    group.create_array("x", shape=(8,), chunks=(4,), dtype="f4", compressors=gzips)
    with pytest.raises(InputError, match="name 2 codecs, 2 of which compress"):
        index(tmp_path / "a.zarr")


@pytest.mark.parametrize("content", ["long", "dense"])
def test_metadata_that_no_array_has_are_not_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    if content == "long":
        write_sparse(tmp_path / "a.zarr/zarr.json")
    else:
        (tmp_path / "a.zarr/zarr.json").write_bytes(
            b'{"zarr_format":3,"node_type":"group","attributes":{"a":' + DENSE + b"}}"
        )
    with pytest.raises((InputError, NotOurs), match=r"zarr.json.*(at most|nearly nothing)"):
        index(tmp_path / "a.zarr")


def test_metadata_that_no_array_has_are_not_read_from_a_store_either() -> None:
    """Of a disk the store of Zarr's own asks for the size; of other stores only the listing tells it."""
    url = f"memory://{make_nonce()}.zarr"
    replace_bytes(f"{url}/zarr.json", bytes((8 << 20) + 1))
    with pytest.raises(InputError, match=r"zarr\.json has 8,388,609 bytes, and metadata have at most 8,388,608"):
        index_input(Input(url=url, columns={"x": "x"}), {"x": "array"})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bomb", ["pipe", "long", "shape", "gzip"])
def test_a_finished_zarr_output_is_taken_at_its_makers_word(tmp_path: Path, bomb: str) -> None:
    url = str(tmp_path / "out.zarr")
    sink = open_sink(url, "zarr", JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA)
    sink.create()
    record = make_record(make_part(0), sink.write(make_part(0)))
    layout = sink._layout  # type: ignore[attr-defined]
    assert len(read_part(url, layout, 0, record.path, record.digest).positions) == PARTITION_ROWS
    name = next(field.name for field in FIELDS if field.kind == "float32")
    chunk = tmp_path / "out.zarr" / sink.objects(0)[[path.split("/")[0] for path in sink.objects(0)].index(name)]
    place = tmp_path / "out.zarr" / "zarr.json"
    metadata = json.loads(place.read_text())
    array = metadata["consolidated_metadata"]["metadata"][name]
    if bomb == "pipe":
        chunk.unlink()
        os.mkfifo(chunk)
    elif bomb == "long":
        write_sparse(chunk)
    elif bomb == "shape":
        array["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**9
    else:
        array["codecs"].append({"name": "gzip", "configuration": {"level": 1}})
    place.write_text(json.dumps(metadata))
    with pytest.raises((NotOurs, IntegrityError)):
        read_part(url, layout, 0, record.path, record.digest)
