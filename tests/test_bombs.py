"""Files that are built to hurt: each is met by what reads it, in a process whose time and peak of memory are measured."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MOST_BYTES = 200_000_000
MOST_SECONDS = 10.0  # of the processor: others may share it, and some are slow
DEEP = "[" * 200_000 + "]" * 200_000
LISTS = "[" + "[]," * 2_500_000 + "1]"
GIGABYTES = 1_500_000_000

# Imports what the commands import, and forks a process for every bomb; what that takes more than it had is told.
SERVER = """
import json, os, resource, sys
from pathlib import Path
from daskinfer.models.preprocessing.images import decode
from daskinfer.models.checkpoints.plainfiles import list_files, read_config, read_plain_files
from daskinfer.models.checkpoints.tensorfiles import read_header, read_weights
from daskinfer.models.folder import LocalFolder
from daskinfer.spec.recipe.loader import load_recipe
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.jobs.lease import read_heartbeat
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.objects.slotlog import SlotLog

def memory(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def index(url="a", wants=("text", "text"), keep=(), **more):
    return index_input(Input(url=str(here / url), **more), {wants[0]: wants[1]} if wants else {}, keep)

def read(*words, **more):
    table = index(*words, **more)
    rows = [read_partition(partition_source(table, partition.number)) for partition in table.partitions]
    raise ValueError("quarantined: " + next(reject.error for batch in rows for reject in batch.rejects))

def weights():
    folder = LocalFolder(here)
    read_plain_files(folder, list_files(folder))
    read_config(folder, list_files(folder))
    read_weights(folder)

for line in sys.stdin:
    folder, statement = json.loads(line)
    if (child := os.fork()) == 0:
        here, before = Path(folder), memory("VmRSS")
        os.environ["DASKINFER_CACHE"] = folder + "/cache"
        try:
            eval(statement)
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime
        print(json.dumps([memory("VmHWM") - before, seconds, said.splitlines()[0][:300]]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def file(name: str, content: bytes | str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def sparse(name: str, size: int, head: bytes = b"", tail: bytes = b"") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as stream:
            stream.write(head)
            stream.truncate(size)
            stream.seek(0, os.SEEK_END)
            stream.write(tail)

    return write


def pipe(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return write


def zero(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return write


def stream(name: str, block: bytes, size: int, head: bytes = b"") -> Callable[[Path], None]:
    """Write a file of one block again and again, compressed as its suffix says."""

    def write(folder: Path) -> None:
        path = str(folder / name)
        openers: dict[str, Callable[[], Any]] = {
            "gz": lambda: gzip.open(path, "wb", compresslevel=1),  # noqa: SIM115
            "bz2": lambda: bz2.open(path, "wb"),  # noqa: SIM115
            "xz": lambda: lzma.open(path, "wb", preset=0),  # noqa: SIM115
            "zst": lambda: pa.CompressedOutputStream(pa.OSFile(path, "wb"), "zstd"),
        }
        opener = openers.get(name.rpartition(".")[2], lambda: open(path, "wb"))  # noqa: PTH123, SIM115
        with opener() as out:
            out.write(head)
            for _ in range(size // len(block)):
                out.write(block)

    return write


def safetensors(header: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file("config.json", '{"architectures": ["BertModel"]}')(folder)
        file("model.safetensors", struct.pack("<Q", len(header)) + header + bytes(8))(folder)

    return write


def parquet(make: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(
        pa.table({"text": make()}), folder / "a.parquet", compression="zstd", **options
    )


def repeated(size: int, rows: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * size]))


def nested_parquet(folder: Path) -> None:
    own, value = pa.string(), "a"
    for _ in range(90):
        own, value = pa.list_(own), [value]  # type: ignore[assignment]
    pq.write_table(pa.table({"text": pa.array([value], own)}), folder / "a.parquet")


def zarr_array(chunk: bytes | None = None, **changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        changed = dict(changes)
        metadata = {
            "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "float32", "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": changed.pop("chunks", [4])}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
        }  # fmt: skip
        file("x.zarr/zarr.json", json.dumps(metadata | changed))(folder)
        if chunk is not None:
            file("x.zarr/c/0", chunk)(folder)

    return write


def sharded(chunk: bytes) -> Callable[[Path], None]:
    """Write an array of one shard of one chunk."""
    index = struct.pack("<QQ", 0, len(chunk))
    own = {"chunk_shape": [4], "codecs": GZIPS, "index_codecs": GZIPS[:1]}
    return zarr_array(chunk + index, codecs=[{"name": "sharding_indexed", "configuration": own}])


GZIPS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip", "configuration": {"level": 1}}]


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    raw = b"".join(packer.compress(bytes(1 + -(-width // 8))) for _ in range(min(height, 30_000))) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")


def text_png() -> bytes:
    """Return a small picture with a gigabyte of compressed comment before it."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1_000_000)) for _ in range(1000)) + packer.flush()
    data = b"zTXt" + b"Comment\0\0" + packed
    whole = png(8, 8)
    return whole[:33] + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) + whole[33:]


def frames(count: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    pictures = [Image.new("P", (64, 64), number % 255) for number in range(count)]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:])
    return out.getvalue()


def zipped_pickle(folder: Path) -> None:
    file("config.json", '{"architectures": ["BertModel"]}')(folder)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x/data.pkl", bytes(300_000_000))


def long_manifest(folder: Path) -> None:
    from daskinfer.storage.registry.catalog import FORMAT

    file("format.json", json.dumps(FORMAT))(folder)
    sparse(f"manifests/{'0' * 64}.json", 5 << 30)(folder)


ALIASES = "x0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
RECIPE = "load_recipe(here / 'r.yaml')"
JSONL = "read('a.jsonl')"
ZARR = "read('x.zarr', ('array', 'array'))"
KEPT = "read('a.parquet', None, ('text',))"
IMAGE = "decode((here / 'a').read_bytes())"
JOB = "jobs/j/"
EMPTY = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
BOMBS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "recipe: aliases": (file("r.yaml", ALIASES), RECIPE, "RecipeError.*20,000 values"),
    "recipe: list": (file("r.yaml", f"x: [{'1,' * 480_000}]"), RECIPE, "RecipeError.*20,000 values"),
    "recipe: keys": (file("r.yaml", "".join(f"a{n}: 1\n" for n in range(90_000))), RECIPE, "RecipeError.*20,000 values"),
    "recipe: nesting": (file("r.yaml", "[" * 400_000), RECIPE, "RecipeError.*nested too deeply"),
    "recipe: digits": (file("r.yaml", f"x: 0x{'f' * 900_000}"), RECIPE, "RecipeError.*problems in"),
    "recipe: long": (sparse("r.yaml", 3 << 30), RECIPE, "RecipeError.*is no recipe"),
    "recipe: pipe": (pipe("r.yaml"), RECIPE, "RecipeError.*is a pipe"),
    "recipe: zero": (zero("r.yaml"), RECIPE, "RecipeError.*is a pipe, device"),
    "config: nesting": (file("config.json", f'{{"a": {DEEP}}}'), "weights()", "CheckpointError.*nested too deeply"),
    "config: lists": (file("config.json", f'{{"a": {LISTS}}}'), "weights()", "CheckpointError.*nothing but lists"),
    "config: digits": (file("config.json", '{"a": ' + "9" * 10_000_000 + "}"), "weights()", "CheckpointError.*valid JSON"),
    "config: long": (sparse("config.json", 2 << 30), "weights()", "CheckpointError.*at most"),
    "config: pipe": (pipe("config.json"), "weights()", "CheckpointError.*named pipe"),
    "tokenizer: long": (sparse("tokenizer.json", 2 << 30), "weights()", "CheckpointError.*at most"),
    "modules: nesting": (file("modules.json", DEEP), "weights()", "CheckpointError.*nested too deeply"),
    "modules: lists": (file("modules.json", LISTS), "weights()", "CheckpointError.*nothing but lists"),
    "tensors: length": (safetensors(b"{}"), "weights()", "CheckpointError.*truncated or has bytes added"),
    "tensors: claimed": (sparse("model.safetensors", 90_000_008, struct.pack("<Q", 90_000_000)), "read_weights(LocalFolder(here))", "CheckpointError.*at most 24,000,000"),
    "tensors: nesting": (safetensors(f'{{"a": {DEEP}}}'.encode()), "weights()", "CheckpointError.*nested too deeply"),
    "tensors: lists": (safetensors(f'{{"a": {LISTS}}}'.encode()), "weights()", "CheckpointError.*nothing but lists"),
    "tensors: many": (safetensors(b"{" + b",".join(EMPTY % n for n in range(400_000)) + b"}"), "weights()", "CheckpointError.*names 400,000 tensors"),
    "tensors: axes": (safetensors(b'{"a":{"dtype":"F32","shape":[' + b"4294967296," * 2_000_000 + b'1],"data_offsets":[0,8]}}'), "weights()", "CheckpointError.*2,000,001 axes"),
    "tensors: overlap": (safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'), "weights()", "CheckpointError.*do not match"),
    "tensors: zero": (zero("model.safetensors"), "weights()", "CheckpointError.*device"),
    "index: long": (sparse("model.safetensors.index.json", 500_000_000), "read_weights(LocalFolder(here))", "CheckpointError.*no readable weight_map"),
    "index: lists": (file("model.safetensors.index.json", LISTS), "read_weights(LocalFolder(here))", "CheckpointError.*no readable weight_map"),
    "config: layers": (file("config.json", '{"num_hidden_layers": 1000000000}'), "read_config(LocalFolder(here), ['config.json'])", "CheckpointError.*num_hidden_layers"),
    "pickle: zip": (zipped_pickle, "weights()", "CheckpointError.*only pickled"),
    "jsonl: long": (stream("a.jsonl", b"x" * 4_000_000, GIGABYTES, b'{"text": "'), JSONL, "InputError.*does not end within"),
    "jsonl: zeros": (sparse("a.jsonl", 20 << 30), JSONL, "InputError.*NUL"),
    "jsonl: gz": (stream("a.jsonl.gz", b"x" * 4_000_000, GIGABYTES, b'{"text": "'), "read('a.jsonl.gz')", "InputError.*a line of more than"),
    "jsonl: bz2": (stream("a.jsonl.bz2", b"x" * 4_000_000, 300_000_000), "read('a.jsonl.bz2')", "InputError.*a line of more than"),
    "jsonl: xz": (stream("a.jsonl.xz", b"x" * 4_000_000, GIGABYTES), "read('a.jsonl.xz')", "InputError.*a line of more than"),
    "jsonl: zst": (stream("a.jsonl.zst", b"x" * 4_000_000, GIGABYTES), "read('a.jsonl.zst')", "InputError.*a line of more than"),
    "jsonl: blank": (stream("a.jsonl.gz", b"\n" * 4_000_000, GIGABYTES // 4), "read('a.jsonl.gz')", "InputError.*expands to more than"),
    "jsonl: nesting": (file("a.jsonl", f'{{"text": {DEEP}}}\n{{"text": "x"}}\n' * 5), JSONL, "ValueError: quarantined.*nested"),
    "jsonl: digits": (file("a.jsonl", f'{{"text": {"9" * 9_000_000}}}\n{{"text": "x"}}\n'), JSONL, "ValueError: quarantined"),
    "csv: field": (stream("a.csv", b"x" * 4_000_000, GIGABYTES, b'text\n"'), "read('a.csv')", "InputError.*never closed"),
    "csv: gz": (stream("a.csv.gz", b"x" * 4_000_000, GIGABYTES, b'text\n"'), "read('a.csv.gz')", "InputError.*a line of more than"),
    "csv: header": (stream("a.csv", b"x" * 4_000_000, GIGABYTES), "read('a.csv')", "InputError.*no header ends"),
    "parquet: dictionary": (parquet(lambda: repeated(5_000_000, 100_000)), "read('a.parquet')", "InputError.*to 10,240,000,000 bytes"),
    "parquet: no schema": (parquet(lambda: repeated(5_000_000, 100_000), store_schema=False), "read('a.parquet')", "InputError.*to 10,240,000,000 bytes"),
    "parquet: lists": (parquet(lambda: pa.ListArray.from_arrays(pa.array(range(0, 10_001, 10), pa.int32()), repeated(5_000_000, 10_000)), store_schema=False), KEPT, "InputError.*to 50,000,000,000 bytes"),
    "parquet: run": (parquet(lambda: pa.ListArray.from_arrays(pa.array([0, 10**8], pa.int32()), pa.array(np.zeros(10**8, np.int8)))), KEPT, "InputError.*row group 0 has 400,"),
    "parquet: group": (parquet(lambda: ["x" * 1_000_000] * 1000, use_dictionary=False, write_statistics=False), "read('a.parquet')", "InputError.*to 1,000,0"),
    "parquet: cell": (parquet(lambda: ["x" * 300_000_000], use_dictionary=False, write_statistics=False), "read('a.parquet')", "InputError.*row group 0 has 300,"),
    "parquet: footer": (sparse("a.parquet", 3 << 30, b"PAR1", struct.pack("<I", 2_000_000_000) + b"PAR1"), "read('a.parquet')", "InputError.*its footer has"),
    "parquet: nesting": (nested_parquet, "read('a.parquet')", "InputError"),
    "zarr: rows": (zarr_array(shape=[10**15], chunks=[10**6]), ZARR, "InputError.*partitions"),
    "zarr: row": (zarr_array(shape=[4, 10**12], chunks=[1, 10**6]), ZARR, "InputError.*bytes for a row"),
    "zarr: chunk": (zarr_array(shape=[4, 10**5], chunks=[10**6, 10**5]), ZARR, "InputError.*bytes for a chunk"),
    "zarr: chunks": (zarr_array(shape=[4, 10**6], chunks=[1, 1]), ZARR, "InputError.*chunks a row"),
    "zarr: partition": (zarr_array(shape=[4096, 10**8], chunks=[1, 10**8]), ZARR, "InputError.*bytes a partition"),
    "zarr: axes": (zarr_array(shape=[1] * 100_000, chunks=[1] * 100_000), ZARR, "InputError.*100,000 shape"),
    "zarr: item": (zarr_array(data_type={"name": "null_terminated_bytes", "configuration": {"length_bytes": 10**12}}, fill_value=""), ZARR, "InputError"),
    "zarr: codecs": (zarr_array(codecs=[GZIPS[0], *GZIPS[1:] * 100_000]), ZARR, "InputError.*100,001 codecs"),
    "zarr: lists": (file("x.zarr/zarr.json", f'{{"zarr_format": 3, "node_type": "array", "a": {LISTS}}}'), ZARR, "InputError.*nothing but lists"),
    "zarr: nesting": (file("x.zarr/zarr.json", f'{{"zarr_format": 3, "node_type": "array", "a": {DEEP}}}'), ZARR, "InputError.*nested"),
    "zarr: long": (sparse("x.zarr/zarr.json", 3 << 30), ZARR, "InputError.*at most"),
    "zarr: gzip": (zarr_array(gzip.compress(bytes(300_000_000)), codecs=GZIPS), ZARR, "InputError.*bytes become more"),
    "zarr: shard": (sharded(gzip.compress(bytes(300_000_000))), ZARR, "InputError.*bytes become more"),
    "zarr: pipe": (lambda folder: (zarr_array()(folder), pipe("x.zarr/c/0")(folder))[0], ZARR, "InputError.*named pipe"),
    "image: claimed": (file("a", png(100_000, 100_000)), IMAGE, "ValueError.*pixels"),
    "image: decoded": (file("a", png(30_000, 30_000)), IMAGE, "ValueError.*pixels"),
    "image: comment": (lambda folder: file("a", text_png())(folder), IMAGE, "ValueError"),
    "image: frames": (lambda folder: file("a", frames(3000))(folder), IMAGE, "nothing"),
    "record: job": (sparse(JOB + "job.json", 5 << 30), "JobStore(str(here), 'j').record()", "NotOurs.*more than"),
    "record: lists": (file(JOB + "job.json", LISTS), "JobStore(str(here), 'j').record()", "NotOurs.*nothing but lists"),
    "record: table": (stream(JOB + "inputs.json.gz", b" " * 4_000_000, GIGABYTES), "JobStore(str(here), 'j').table()", "IntegrityError"),
    "record: lease": (pipe("lease.json"), "read_heartbeat(str(here))", "NotOurs.*pipe"),
    "record: slot": (zero("000000000000.json"), "SlotLog(str(here)).read()", "NotOurs.*device"),
    "record: manifest": (long_manifest, "Registry(str(here)).manifest('sha256:' + '0' * 64)", "NotOurs.*more than"),
    "record: output": (file("_MANIFEST.json", LISTS), "read_manifest(str(here))", "NotOurs.*nothing but lists"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.late
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory_and_time(
    tmp_path: Path, server: subprocess.Popen[str], name: str, record_property: Callable[[str, object], None]
) -> None:
    write, statement, said = BOMBS[name]
    (tmp_path / JOB).mkdir(parents=True)
    write(tmp_path)
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([str(tmp_path), statement]) + "\n")
    server.stdin.flush()
    taken, seconds, message = json.loads(server.stdout.readline())
    print(f"BOMB {name:22} {seconds:5.1f} s {taken / 1e6:6.0f} MB  {message[:110]}")
    assert re.match(said, message), message
    assert taken < MOST_BYTES and seconds < MOST_SECONDS, (taken, seconds)


# Those that are made in a moment, for every run of the tests: that each is refused, whatever it takes.
QUICK = [
    name
    for name in BOMBS
    if (name.partition(":")[0] in ("modules", "record") and name != "record: table")
    or name in ("config: lists", "tensors: many", "tensors: axes", "tensors: lists", "zarr: partition")
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", QUICK)
def test_bombs_are_refused(tmp_path: Path, name: str) -> None:
    write, statement, said = BOMBS[name]
    (tmp_path / JOB).mkdir(parents=True)
    write(tmp_path)
    scope: dict[str, Any] = {"here": tmp_path}
    exec(SERVER.partition("for line in sys.stdin")[0], scope)  # noqa: S102
    with pytest.raises(Exception) as refused:
        eval(statement, scope)
    assert re.match(said, f"{refused.typename}: {refused.value}".splitlines()[0])
