from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError
from daskinfer.spec.upkeep import Verification
from daskinfer.storage.filesystem import delete, read_bytes, replace_bytes
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing import Origin, publish
from daskinfer.storage.registry.verification import verify
from daskinfer.storage.slotlog import SlotLog
from daskinfer.storage.urls import join_url
from daskinfer.testing.checkpoints import make_checkpoint, make_registry


def damage(found: Verification) -> list[str]:
    assert all(finding.where and finding.advice for finding in found.findings)
    return [finding.what for finding in found.findings if finding.damaged]


def refer(folder: Path) -> Registry:
    """Return a registry whose one checkpoint refers to files beside it."""
    source = make_checkpoint()
    groups = []
    for number, group in enumerate(source.groups):
        file = folder / f"{number}.safetensors"
        file.write_bytes(group.blob())
        begin = 8 + int.from_bytes(group.blob()[:8], "little")
        # As make_checkpoint writes them: the bias of 8 floats, then the weight of 16 x 8.
        spans = {"bias": (begin, begin + 32), "weight": (begin + 32, begin + 544)}
        origins = {f"{group.name}.{name}": Origin(str(file), *span) for name, span in spans.items()}
        groups.append(replace(group, origins=origins))
    registry = Registry(str(folder / "registry"))
    publish(registry, "mini", replace(source, groups=groups), "prod")
    return registry


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_registry_is_whole(any_store: str, deep: bool) -> None:
    registry = make_registry(any_store)
    told: list[tuple[str, int, int]] = []
    found = verify(registry, deep=deep, watch=lambda *numbers: told.append(numbers))
    assert found.findings == () and not found.damaged
    assert (found.snapshots, found.blobs, found.tensors, found.logs) == (3, 13, 18, 5)
    assert bool(told) == deep
    if deep:
        assert told[-1] == ("hashing", found.size, found.size)
    one = verify(registry, "mini@v2", deep=deep)
    assert (one.snapshots, one.blobs, one.logs, one.findings) == (1, 5, 0, ())


@pytest.mark.parametrize("deep", [False, True])
def test_every_kind_of_damage_is_found(any_store: str, deep: bool) -> None:
    registry = make_registry(any_store)
    first, second, third = (registry.manifest(version.snapshot) for version in registry.versions("mini"))

    def change(blob: str | None, edit: Callable[[bytes], bytes]) -> None:
        url = join_url(registry.url, str(blob))
        replace_bytes(url, edit(read_bytes(url)))

    delete(join_url(registry.url, first.files[0].blob))
    change(first.groups[0].blob, lambda data: data[:-1])
    change(second.groups[1].blob, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    change(second.groups[2].blob, lambda data: data.replace(b"F32", b"I32"))
    change(second.files[1].blob, lambda data: data.replace(b"w", b"W"))
    replace_bytes(registry.manifest_url(third.digest), b"{}")
    delete(join_url(registry.alias_log("mini", "prod").url, f"{1:012d}.json"))
    found = damage(verify(registry, deep=deep))
    shallow = ["record 1 of ", "config.json of", "layer group embeddings of", "manifest "]
    read = ["vocab.txt of", "tensor layer.0.weight is damaged", "its header is damaged"]
    for part in shallow + read * deep:
        assert sum(part in what for what in found) == 1, (part, found)
    assert len(found) == len(shallow) + len(read) * deep
    assert damage(verify(registry, "mini@v3", deep=deep)) == [what for what in found if "manifest " in what]


def test_missing_manifests_are_found_and_deleted_ones_are_none(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    first, second, _ = registry.versions("mini")
    for operation in ("condemn", "sweep"):
        registry.life_log(first.snapshot).append({"op": operation})
    for snapshot in (first.snapshot, second.snapshot):
        delete(registry.manifest_url(snapshot))
    (what,) = damage(verify(registry))
    assert second.snapshot in what


@pytest.mark.parametrize("deep", [False, True])
def test_files_that_are_referred_to(tmp_path: Path, deep: bool) -> None:
    registry = refer(tmp_path)
    whole = verify(registry, deep=deep)
    assert whole.findings == () and whole.tensors == 6
    file = tmp_path / "1.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = verify(registry, deep=deep)
    assert [part for what in damage(found) for part in ("layer.0.weight", "is damaged") if part in what] == [
        "layer.0.weight",
        "is damaged",
    ] * deep
    file.write_bytes(data[:-1])
    (what,) = damage(verify(registry, deep=deep))
    assert "layer.0" in what and "bytes, not" in what
    file.unlink()
    found = verify(registry, deep=deep)
    assert ["is gone" in what for what in damage(found)] == [True]
    assert found.findings[0].where == str(file) and "Put the file back" in found.findings[0].advice


def test_what_is_unfinished_is_noticed_and_no_damage(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=2)
    first, second = registry.versions("mini")
    locks.take(registry, first.snapshot, "job-1")
    for operation in ("condemn", "sweep"):
        registry.life_log(first.snapshot).append({"op": operation})
    delete(registry.manifest_url(first.snapshot))
    SlotLog(join_url(registry.url, "publish", "0badcafe")).append(
        {"op": "begin", "name": "mini", "by": "me@here", "at": "now"}
    )
    delete(join_url(registry.url, "publish", f"{second.publish}.done"))
    found = verify(registry)
    assert not found.damaged
    whats = [finding.what for finding in found.findings]
    assert len(whats) == 3
    assert any("publish 0badcafe of mini, begun by me@here at now, is not finished" in what for what in whats)
    assert any(second.publish in what and "committed and not finished" in what for what in whats)
    assert any("a lock of job-1" in what for what in whats)


def test_no_registry_is_not_a_whole_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no registry at"):
        verify(Registry(str(tmp_path / "none")))
