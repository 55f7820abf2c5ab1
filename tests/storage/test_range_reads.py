from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from daskinfer.errors import CorruptBlob
from daskinfer.ids import make_nonce
from daskinfer.knobs import LOCAL_CHUNK, REMOTE_CHUNK
from daskinfer.spec.snapshot import LayerGroup, TensorEntry
from daskinfer.storage.objects.filesystem import delete, open_filesystem, read_bytes, replace_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.tensors.range_reads import DamagedTensor, Wanted, stream_tensors
from daskinfer.testing.fixtures.groups import Arrays, as_reference, store_group

RANDOM = np.random.default_rng(0)
ARRAYS: Arrays = {
    "a.big": RANDOM.random((700, 100), dtype=np.float32),
    "a.small": RANDOM.random(3, dtype=np.float32),
    "a.middle": RANDOM.random((100, 100), dtype=np.float32),
    "a.empty": np.zeros((0, 4), dtype=np.float32),
    "a.flags": np.arange(17) % 3 == 0,
    "a.scalar": np.array(7, dtype=np.int64),
}


class Memory:
    """Bytes of one tensor; insists on being filled in order, once."""

    def __init__(self, entry: TensorEntry) -> None:
        self.data = bytearray(entry.end - entry.begin)
        self.done = 0

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        return memoryview(self.data)[offset : offset + nbytes]

    def filled(self, offset: int, nbytes: int) -> None:
        assert offset == self.done
        self.done += nbytes


@pytest.fixture
def small_chunks() -> Iterator[None]:
    """Many chunks a tensor, several tensors a chunk."""
    with LOCAL_CHUNK.override(4096), REMOTE_CHUNK.override(40960):
        yield


def every_tensor(*groups: LayerGroup) -> list[Wanted]:
    return [(group, entry) for group in groups for entry in group.tensors]


def stream(url: str, wanted: list[Wanted]) -> tuple[dict[str, bytes], int]:
    targets = {entry.name: Memory(entry) for _, entry in wanted}
    count = stream_tensors(url, wanted, targets)
    assert all(target.done == len(target.data) for target in targets.values())
    return {name: bytes(target.data) for name, target in targets.items()}, count


@pytest.mark.parametrize("reference", [False, True])
def test_tensors_come_whole(any_store: str, small_chunks: None, reference: bool) -> None:
    groups = [store_group(any_store, "a", ARRAYS), store_group(any_store, "b", {"b.w": RANDOM.random(5000)})]
    if reference:
        groups = [as_reference(any_store, group) for group in groups]
    found, _ = stream("nowhere" if reference else any_store, every_tensor(*groups))
    assert {name: found[name] for name in ARRAYS} == {name: array.tobytes() for name, array in ARRAYS.items()}
    assert len(found) == len(ARRAYS) + 1


def test_only_what_is_wanted_is_read(any_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {f"t{number:02}": RANDOM.random(2000 + number, dtype=np.float32) for number in range(40)}
    group = store_group(any_store, "g", arrays)
    read: list[int] = []
    if "://" in any_store:
        filesystem, _ = open_filesystem(any_store)
        original = filesystem.cat_file

        def count(*args: object, **keywords: object) -> bytes:
            data: bytes = original(*args, **keywords)
            read.append(len(data))
            return data

        monkeypatch.setattr(filesystem, "cat_file", count)
    for step in (1, 2, 5):
        wanted = every_tensor(group)[::step]
        size = sum(entry.end - entry.begin for _, entry in wanted)
        read.clear()
        found, told = stream(any_store, wanted)
        assert size <= told <= 1.02 * size
        assert found == {entry.name: arrays[entry.name].tobytes() for _, entry in wanted}
        if "://" in any_store:
            assert sum(read) == told


def test_small_gaps_are_read_along_on_remote_stores_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors of one type are stored by name: every second one is a gap.
    arrays = {f"t{number:02}": RANDOM.random(1 if number % 2 else 10_000) for number in range(20)}
    for url, slack in ((str(tmp_path), False), (f"memory://{make_nonce()}", True)):
        group = store_group(url, "g", arrays)
        wanted = every_tensor(group)[::2]
        size = sum(entry.end - entry.begin for _, entry in wanted)
        assert (stream(url, wanted)[1] > size) is slack


@pytest.mark.parametrize("name", [name for name, array in ARRAYS.items() if array.size])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_flipped_bit_is_noticed_in_every_tensor(tmp_path: Path, small_chunks: None, name: str, place: str) -> None:
    url = str(tmp_path)
    group = store_group(url, "a", ARRAYS)
    blob = tmp_path / str(group.blob)
    entry = next(entry for entry in group.tensors if entry.name == name)
    data = bytearray(blob.read_bytes())
    data[entry.begin if place == "first" else entry.end - 1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DamagedTensor, match="is damaged") as damage:
        stream(url, every_tensor(group))
    message = damage.value.message
    assert name in message and "layer group a" in message and str(blob) in message
    assert entry.blake3 in message and message.count("blake3") == 1
    assert damage.value.entry == entry and "registry was damaged" in str(damage.value.hint)
    # What does not touch the damage goes on working.
    rest = [pair for pair in every_tensor(group) if pair[1] != entry]
    assert len(stream(url, rest)[0]) == len(ARRAYS) - 1


@pytest.mark.parametrize("reference", [False, True])
def test_short_and_missing_files_are_noticed(any_store: str, small_chunks: None, reference: bool) -> None:
    group = store_group(any_store, "a", ARRAYS)
    url = join_url(any_store, str(group.blob))
    wanted = every_tensor(as_reference(any_store, group) if reference else group)
    data = read_bytes(url)
    hint = "published by reference" if reference else "registry was damaged"
    for length in (len(data) - 1, len(data) // 2, 10):
        replace_bytes(url, data[:length])
        with pytest.raises(CorruptBlob, match=r"tensor a\..* too short") as short:
            stream(any_store, wanted)
        assert hint in str(short.value.hint) and url in short.value.message
    delete(url)
    with pytest.raises(CorruptBlob, match="its file is gone") as gone:
        stream(any_store, wanted)
    assert hint in str(gone.value.hint)


def test_progress_adds_up(tmp_path: Path, small_chunks: None) -> None:
    group = store_group(str(tmp_path), "a", ARRAYS)
    targets = {entry.name: Memory(entry) for entry in group.tensors}
    told: list[int] = []
    stream_tensors(str(tmp_path), every_tensor(group), targets, progress=told.append)
    assert sum(told) == sum(array.nbytes for array in ARRAYS.values())
    assert len(told) > 20


def test_a_failing_target_stops_it_and_leaves_no_thread(tmp_path: Path, small_chunks: None) -> None:
    group = store_group(str(tmp_path), "a", ARRAYS)
    targets = {entry.name: Memory(entry) for entry in group.tensors}
    targets["a.big"].done = 1
    with pytest.raises(AssertionError):
        stream_tensors(str(tmp_path), every_tensor(group), targets)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensors")]


def test_errors_survive_the_way_to_another_process(tmp_path: Path) -> None:
    group = store_group(str(tmp_path), "layer.0", {"weight": np.ones(4, np.float32)})
    Path(tmp_path, str(group.blob)).unlink()
    with pytest.raises(DamagedTensor) as damage:
        stream(str(tmp_path), every_tensor(group))
    again = pickle.loads(pickle.dumps(damage.value))
    assert (str(again), again.entry) == (str(damage.value), group.tensors[0])
