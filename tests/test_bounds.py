"""Checkpoints and images that are built to hurt are refused by name; `test_bombs.py` measures time and memory."""

from __future__ import annotations

import json
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoints.config_limits import refuse_absurd
from daskinfer.models.checkpoints.plainfiles import (
    list_files,
    read_plain_files,
    read_sentence_weights,
    refuse_special_files,
)
from daskinfer.storage.tensors.folder import Folder


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


@pytest.mark.parametrize("kind", ["Pooling", "Dense"])
@pytest.mark.parametrize("path", ["../other", "/etc", "http://127.0.0.1:1/x", "a/b", "1_Pooling/..", "a\0b"])
def test_a_module_of_a_checkpoint_lies_in_a_folder_of_its_own(tmp_path: Path, path: str, kind: str) -> None:
    """Else publishing would read what lies elsewhere on this machine, or ask a server that the checkpoint names."""
    modules = json.dumps([{"type": f"sentence_transformers.models.{kind}", "path": path}])
    asked: list[str] = []

    class Watched(Folder):
        def size(self, name: str) -> int | None:
            asked.append(name)
            return super().size(name)

    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=r"modules.json: a module lies in .* no folder beside it"):
        read_plain_files(Watched(str(tmp_path)), ["modules.json"])
    with pytest.raises(CheckpointError, match=r"modules.json: a module lies in .* no folder beside it"):
        read_sentence_weights(Watched(str(tmp_path)), {"modules.json": modules.encode()})
    assert asked == ["modules.json"]


def test_a_link_in_a_folder_of_a_checkpoint_does_not_leave_it(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json: it is a link to .*not in the checkpoint"):
        list_files(Folder(str(tmp_path)))


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
