"""What is built to hurt is refused in little time and memory, in a process whose peak is measured."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoints.config_limits import refuse_absurd
from daskinfer.models.checkpoints.plainfiles import refuse_special_files

MOST_BYTES = 200_000_000
DEEP = "[" * 200_000 + "]" * 200_000

# Runs a statement, and says what it raised and how many bytes of memory it took beyond the imports.
MEASURE = """
import resource, sys
import daskinfer.models.checkpoints.tensorfiles, daskinfer.models.checkpoints.plainfiles, daskinfer.storage.inputs.partition_table
from pathlib import Path
from daskinfer.models.checkpoints.tensorfiles import read_weights, read_header
from daskinfer.models.folder import LocalFolder
from daskinfer.models.checkpoints.plainfiles import list_files, read_config
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.partition_table import index_input
here = Path(sys.argv[1])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    eval(sys.argv[2])
    said = "nothing"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(peak() - before, said.splitlines()[0])
"""


def write_special(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "a named pipe"),
        ("socket", "a socket"),
        ("dangling", "leads nowhere"),
        ("outward", "not in the checkpoint"),
    ],
)
def test_special_files_in_a_checkpoint_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_special(kind, tmp_path / "README.md")
    with pytest.raises(CheckpointError, match=f"README.md: it is .*{said}"):
        refuse_special_files(str(tmp_path))


def test_the_cache_of_a_hub_is_no_outward_link(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "1"
    (tmp_path / "models--x" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--x" / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "same.json").symlink_to("config.json")
    refuse_special_files(str(snapshot))


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 2_000_000},
        {"n_layer": 10**9},
        {"text_config": {"num_hidden_layers": 5001}},
        {"depths": [2, 2, 10**6]},
        {"num_hidden_layers": 1000, "num_experts": 5000},
        {"num_local_experts": 10**6},
        {"num_labels": 10**9},
        {"hidden_size": 10**12},
        {"max_position_embeddings": 10**12},
        {"image_size": 10**6},
        {"image_size": 30_000, "patch_size": 1},
        {"vocab_size": 1e300},
        json.loads('{"a": ' + "[" * 90 + "]" * 90 + "}"),
    ],
)
def test_absurd_models_are_refused_before_they_are_built(config: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: ") as refused:
        refuse_absurd(config)
    assert refused.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 126, "hidden_size": 16384, "vocab_size": 128256, "max_position_embeddings": 131072},
        {"num_hidden_layers": 61, "n_routed_experts": 384, "num_experts_per_tok": 8, "moe_layer_freq": 1},
        {"image_size": 1024, "patch_size": 14, "depths": [2, 2, 18, 2], "num_labels": 21843},
        {"model_max_length": 10**30, "layer_norm_eps": 1e-5, "layer_types": ["full_attention"] * 48},
    ],
)
def test_models_that_are_there_are_not(config: dict[str, object]) -> None:
    refuse_absurd(config)


def write_png(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = zlib.compress((b"\0" * (1 + -(-width // 8))) * height)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", raw) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("width", "height"), [(80_000_000, 1), (1, 2_000_000), (8000, 7000), (40_100, 200)])
def test_images_that_would_take_too_much_cost_themselves_only(tmp_path: Path, width: int, height: int) -> None:
    from daskinfer.models.preprocessing.images import decode

    write_png(tmp_path / "bomb.png", width, height)
    with pytest.raises(ValueError, match=rf"{width} x {height} pixels"):
        decode((tmp_path / "bomb.png").read_bytes())
    write_png(tmp_path / "long.png", 2000, 10)
    assert decode((tmp_path / "long.png").read_bytes()).size == (2000, 10)


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' + DEEP + "}")


def long_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{}" + b" " * 20_000_000)


def long_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(90_000_008)


def deep_header(folder: Path) -> None:
    text = ('{"a": ' + DEEP + "}").encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def long_index(folder: Path) -> None:
    with (folder / "model.safetensors.index.json").open("wb") as file:
        file.truncate(500_000_000)


def long_line(folder: Path) -> None:
    with (folder / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(500):
            file.write(b"x" * 1_000_000)


def large_cell(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": pa.array(["x" * 300_000_000])})
    pq.write_table(table, folder / "a.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    assert (folder / "a.parquet").stat().st_size < 1_000_000


def input_pipe(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "x"}\n')
    os.mkfifo(folder / "b.jsonl")


def claim_zarr(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        metadata = {
            "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "float32", "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
        }  # fmt: skip
        chunks = changes.pop("chunks", None)
        if chunks:
            metadata["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        (folder / "x.zarr").mkdir()
        (folder / "x.zarr" / "zarr.json").write_text(json.dumps(metadata | changes))

    return write


READ_ZARR = "index_input(Input(url=str(here / 'x.zarr')), {'array': 'array'})"
BOMBS = [
    (
        deep_config,
        "read_config(LocalFolder(here), list_files(LocalFolder(here)))",
        "CheckpointError: .*nested too deeply",
    ),
    (long_config, "read_config(LocalFolder(here), list_files(LocalFolder(here)))", "CheckpointError: .*at most"),
    (long_header, "read_weights(LocalFolder(here))", "CheckpointError: .*header has 90,000,000 bytes"),
    (deep_header, "read_weights(LocalFolder(here))", "CheckpointError: .*nested too deeply"),
    (long_index, "read_weights(LocalFolder(here))", "CheckpointError: .*no readable weight_map"),
    (long_line, "index_input(Input(url=str(here)), {'text': 'text'})", "InputError: .*line 1: has 500,000,010 bytes"),
    (
        large_cell,
        "index_input(Input(url=str(here)), {'text': 'text'})",
        "InputError: .*a.parquet: row group 0 has 300,",
    ),
    (input_pipe, "index_input(Input(url=str(here)), {'text': 'text'})", "InputError: .*b.jsonl is a named pipe"),
    (claim_zarr(shape=[10**15], chunks=[10**6]), READ_ZARR, "InputError: .*partitions"),
    (claim_zarr(shape=[4, 10**12], chunks=[1, 10**6]), READ_ZARR, "InputError: .*bytes a row"),
    (claim_zarr(shape=[4, 10**5], chunks=[10**6, 10**5]), READ_ZARR, "InputError: .*bytes a chunk"),
    (claim_zarr(shape=[4, 10**6], chunks=[1, 1]), READ_ZARR, "InputError: .*chunks a row"),
]


@pytest.mark.parametrize(("write", "statement", "said"), BOMBS)
def test_bombs_take_little_memory_and_time(
    tmp_path: Path, write: Callable[[Path], None], statement: str, said: str
) -> None:
    import re

    write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), statement],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    taken, _, message = done.stdout.strip().partition(" ")
    assert re.match(said, message), message
    assert int(taken) < MOST_BYTES
