from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer.errors import CorruptBlob, StorageError
from daskinfer.ids import make_nonce
from daskinfer.spec.snapshot import LayerGroup, TensorEntry
from daskinfer.storage.objects.filesystem import delete, read_bytes, replace_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.tensors.node_cache import NodeCache, load_tensors, open_cache
from daskinfer.storage.tensors.range_reads import Wanted
from daskinfer.testing.fixtures.groups import store_group

pytestmark = pytest.mark.s3
SIZE = 40_000


class Memory:
    def __init__(self, entry: TensorEntry) -> None:
        self.data = bytearray(entry.end - entry.begin)

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        return memoryview(self.data)[offset : offset + nbytes]

    def filled(self, offset: int, nbytes: int) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DASKINFER_CACHE_BYTES", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def remote(s3_url: str) -> str:
    return join_url(s3_url, make_nonce())


def make_group(url: str, name: str = "g", seed: int = 0) -> LayerGroup:
    random = np.random.default_rng([seed])
    return store_group(url, name, {f"{name}.{leaf}": random.random(SIZE // 8) for leaf in "abcd"})


def load(url: str, *groups: LayerGroup, told: list[int] | None = None) -> tuple[dict[str, bytes], int]:
    wanted: list[Wanted] = [(group, entry) for group in groups for entry in group.tensors]
    targets = {entry.name: Memory(entry) for _, entry in wanted}
    count = load_tensors(url, wanted, targets, progress=None if told is None else told.append)
    return {name: bytes(target.data) for name, target in targets.items()}, count


def cached_files(cache: Path) -> list[Path]:
    return sorted((cache / "tensors").iterdir())


def test_what_was_read_once_is_not_read_again(cache: Path, remote: str) -> None:
    group = make_group(remote)
    told: list[int] = []
    first, count = load(remote, group, told=told)
    assert count == sum(told) == 4 * SIZE
    data = read_bytes(join_url(remote, str(group.blob)))
    assert first == {entry.name: data[entry.begin : entry.end] for entry in group.tensors}
    assert [path.name for path in cached_files(cache)] == sorted(entry.blake3 for entry in group.tensors)
    delete(join_url(remote, str(group.blob)))
    told.clear()
    assert load(remote, group, told=told) == (first, 0)
    assert sum(told) == 4 * SIZE


def test_a_part_of_a_group_brings_that_part(cache: Path, remote: str) -> None:
    group = make_group(remote)
    part = group.model_copy(update={"tensors": group.tensors[1:2]})
    assert load(remote, part)[1] == SIZE
    assert load(remote, group)[1] == 3 * SIZE


def test_a_damaged_tensor_is_fetched_again(cache: Path, remote: str) -> None:
    group = make_group(remote)
    expected, _ = load(remote, group)
    for damage in (lambda path: path.write_bytes(bytes(SIZE)), lambda path: path.write_bytes(b""), Path.unlink):
        damage(cached_files(cache)[1])
        assert load(remote, group) == (expected, SIZE)
        assert load(remote, group) == (expected, 0)


def test_damage_at_the_source_is_told_and_not_kept(cache: Path, remote: str) -> None:
    group = make_group(remote)
    url = join_url(remote, str(group.blob))
    data = bytearray(read_bytes(url))
    data[group.tensors[2].begin] ^= 1
    replace_bytes(url, bytes(data))
    with pytest.raises(CorruptBlob, match=group.tensors[2].name):
        load(remote, group)
    kept = {path.name for path in cached_files(cache)}
    assert group.tensors[2].blake3 not in kept
    assert not [name for name in kept if name.endswith(".tmp")]


CHILD = """
import json, sys
from daskinfer.spec.snapshot import LayerGroup
from daskinfer.storage.tensors.node_cache import load_tensors
class Memory:
    def __init__(self, entry): self.data = bytearray(entry.end - entry.begin)
    def buffer(self, offset, nbytes): return memoryview(self.data)[offset : offset + nbytes]
    def filled(self, offset, nbytes): pass
groups = [LayerGroup.model_validate(group) for group in json.load(sys.stdin)]
wanted = [(group, entry) for group in groups for entry in group.tensors]
print(load_tensors(sys.argv[1], wanted, {entry.name: Memory(entry) for _, entry in wanted}))
"""


def test_of_several_processes_one_fetches(cache: Path, remote: str) -> None:
    groups = [make_group(remote, f"g{number}", number) for number in range(3)]
    text = json.dumps([group.model_dump() for group in groups])
    command = [sys.executable, "-c", CHILD, remote]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(text)
        child.stdin.close()
        child.stdin = None
    counts = [int(child.communicate(timeout=180)[0]) for child in children]
    assert sum(counts) == 3 * 4 * SIZE


def test_what_was_used_longest_ago_makes_room(cache: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKINFER_CACHE_BYTES", str(9 * SIZE))
    old, used, new = (make_group(remote, name, number) for number, name in enumerate(("old", "used", "new")))
    load(remote, used)
    load(remote, old)
    time.sleep(0.02)
    load(remote, used)
    load(remote, new)
    assert sum(path.stat().st_size for path in cached_files(cache)) <= 9 * SIZE
    assert load(remote, used)[1] == 0
    assert load(remote, new)[1] == 0
    assert load(remote, old)[1] >= 3 * SIZE


@pytest.mark.parametrize("limit", ["0", str(3 * SIZE)])
def test_without_room_it_is_read_straight(
    cache: Path, remote: str, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("DASKINFER_CACHE_BYTES", limit)
    group = make_group(remote)
    told: list[int] = []
    for _ in range(2):
        assert load(remote, group, told=told)[1] == 4 * SIZE
    assert sum(told) == 8 * SIZE
    assert not cache.exists() or not cached_files(cache)


def test_a_place_that_cannot_be_written_is_done_without(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "file" / "cache"))
    assert load(remote, make_group(remote))[1] == 4 * SIZE


def test_local_registries_are_not_copied(cache: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "registry")
    assert load(url, make_group(url))[1] == 4 * SIZE
    assert not cache.exists()


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKINFER_CACHE_BYTES", "lots")
    with pytest.raises(StorageError, match="'lots' is not a number of bytes"):
        open_cache()


def test_what_a_killed_process_left_is_removed_in_turn(cache: Path, remote: str) -> None:
    group = make_group(remote)
    (cache / "tensors").mkdir(parents=True)
    left = cache / "tensors" / ".x.tmp"
    left.write_bytes(bytes(SIZE))
    os.utime(left, (0, 0))
    NodeCache(cache, 4 * SIZE).fetch(remote, [(group, entry) for entry in group.tensors], lambda nbytes: None)
    assert not left.exists()
