from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError, StorageError
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import find_files, list_names
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publications import list_publications
from daskinfer.storage.registry.publishing.publish import CheckpointSource, GroupSource, publish
from daskinfer.storage.tensors.blobs import read_group
from daskinfer.testing.fixtures.checkpoints import make_checkpoint

LAYERS = ("embeddings", "layer.0", "layer.1", "layer.2")


def fine_tune(seed: int, changed: int = 1) -> CheckpointSource:
    """The checkpoint of seed 0 whose last layers are another's."""
    base, other = make_checkpoint(0, LAYERS), make_checkpoint(seed, LAYERS)
    kept = len(LAYERS) - changed
    return replace(base, groups=[*base.groups[:kept], *other.groups[kept:]])


def blobs(manifest: Manifest) -> set[str]:
    return set(manifest.blobs)


def check_whole(registry: Registry, manifest: Manifest) -> None:
    for piece in manifest.files:
        registry.file(manifest, piece.path)
    for group in manifest.groups:
        read_group(registry.url, group)


def test_only_what_changed_is_stored(any_store: str) -> None:
    registry = Registry(any_store)
    first = registry.manifest(publish(registry, "mini", make_checkpoint(0, LAYERS), "prod").snapshot)
    before = find_files(f"{any_store}/blobs")
    second = registry.manifest(publish(registry, "mini", fine_tune(1), "prod").snapshot)
    after = find_files(f"{any_store}/blobs")
    assert len(after.keys() - before.keys()) == 1
    assert len(blobs(first) & blobs(second)) == len(blobs(first)) - 1
    assert sum(after.values()) - sum(before.values()) == second.groups[-1].size
    check_whole(registry, second)
    for snapshot in (first.digest, second.digest):
        assert locks.list_holders(registry, snapshot) == []
    assert not [name for name in list_names(f"{any_store}/publish") if name.endswith(".hb")]


def test_the_parent_is_a_base_too(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    parent = publish(registry, "base", make_checkpoint(0, LAYERS), None).snapshot
    child = publish(registry, "tuned", replace(fine_tune(1), parent=parent), None).snapshot
    assert len(blobs(registry.manifest(parent)) & blobs(registry.manifest(child))) == 5
    nowhere = publish(registry, "other", replace(fine_tune(2), parent="sha256:" + "1" * 64), None).snapshot
    assert not blobs(registry.manifest(nowhere)) & blobs(registry.manifest(child))
    assert list_names(f"{tmp_path}/locks/{'1' * 64}") == []


def test_every_manifest_is_the_only_one_of_its_digest(tmp_path: Path) -> None:
    """Going back to what a deleted version was must not bring its digest back, which stays deleted for ever."""
    registry = Registry(str(tmp_path))
    original = make_checkpoint(0, LAYERS)
    first = publish(registry, "mini", original, None)
    publish(registry, "mini", replace(original, tied={"a": "b"}), None)
    for operation in ("condemn", "sweep"):
        registry.life_log(first.snapshot).append({"op": operation})
    again = publish(registry, "mini", original, None)
    assert again.version == 3 and again.snapshot != first.snapshot
    assert blobs(registry.manifest(again.snapshot)) == blobs(registry.manifest(first.snapshot))


def test_damaged_blobs_are_not_taken_over(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = registry.manifest(publish(registry, "mini", make_checkpoint(0, LAYERS), None).snapshot)
    damages: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"!"),
        Path.unlink,
    ]
    for group, damage in zip(first.groups, damages, strict=True):
        damage(tmp_path / str(group.blob))
    second = registry.manifest(publish(registry, "mini", make_checkpoint(0, LAYERS), None).snapshot)
    check_whole(registry, second)
    assert blobs(first) & blobs(second) == {piece.blob for piece in first.files}


def test_a_dead_base_is_passed_over(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint(0, LAYERS), None).snapshot
    second = publish(registry, "mini", fine_tune(1, changed=4), None).snapshot
    for operation in ("condemn", "sweep"):
        registry.life_log(second).append({"op": operation})
    third = registry.manifest(publish(registry, "mini", fine_tune(2), None).snapshot)
    assert len(blobs(third) & blobs(registry.manifest(first))) == 5
    # A manifest that cannot be read is no base, and no reason to fail.
    Path(registry.manifest_url(third.digest)).write_bytes(b"{}")
    fourth = registry.manifest(publish(registry, "mini", fine_tune(2), None).snapshot)
    assert len(blobs(fourth) & blobs(registry.manifest(first))) == 5


def test_the_base_is_held_while_its_blobs_are_taken(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint(0, LAYERS), None).snapshot
    reached, go_on = threading.Event(), threading.Event()

    def wait() -> bytes:
        if list_publications(registry):
            reached.set()
            assert go_on.wait(180)
        return make_checkpoint(7, LAYERS).groups[-1].blob()

    base = make_checkpoint(0, LAYERS)
    source = replace(base, groups=[*base.groups[:-1], GroupSource(LAYERS[-1], wait)])
    publisher = threading.Thread(target=publish, args=(registry, "mini", source))
    publisher.start()
    assert reached.wait(180)
    (publication,) = list_publications(registry)
    (holder,) = locks.list_holders(registry, first)
    assert (holder.job, holder.purpose) == (publication.job, "base")
    assert (publication.state, publication.name) == ("begun", "mini")
    assert (tmp_path / "publish" / f"{publication.identity}.hb").exists()
    go_on.set()
    publisher.join()
    assert locks.list_holders(registry, first) == []
    assert len(registry.versions("mini")) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckpointError("no")])
def test_what_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    registry = Registry(str(tmp_path))
    publish(registry, "mini", make_checkpoint(0, LAYERS), None)
    before = find_files(f"{tmp_path}/blobs")

    def fail() -> bytes:
        if list_publications(registry):
            raise error
        return make_checkpoint().groups[0].blob()

    source = replace(fine_tune(3, changed=2), files={"config.json": b"{}"})
    source = replace(source, groups=[*source.groups, GroupSource("head", fail)])
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        publish(registry, "mini", source, None)
    assert find_files(f"{tmp_path}/blobs") == before
    assert [each.state for each in list_publications(registry)] == ["aborted"]
    assert not find_files(f"{tmp_path}/locks")


def test_a_commit_of_unknown_outcome_is_left_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after the commit got through must not delete the blobs of what is published."""
    from daskinfer.storage.registry.access import authorised_writes

    registry = Registry(str(tmp_path))
    append = authorised_writes.append

    def append_then_fail(*words: object, **named: object) -> object:
        slot = append(*words, **named)  # type: ignore[arg-type]
        if slot.record["op"] == "commit":
            raise StorageError("the connection broke")
        return slot

    monkeypatch.setattr(authorised_writes, "append", append_then_fail)
    with pytest.raises(StorageError, match="the connection broke"):
        publish(registry, "mini", make_checkpoint(), "prod")
    monkeypatch.undo()
    again = publish(registry, "mini", make_checkpoint(), "prod")
    assert again.version == 1
    check_whole(registry, registry.manifest(again.snapshot))


KILLED = """
import os, sys
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publications import list_publications
from daskinfer.storage.registry.publishing.publish import GroupSource, publish
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from dataclasses import replace
registry = Registry(sys.argv[1])
base = make_checkpoint(0, ("embeddings", "layer.0", "layer.1", "layer.2"))
def die():
    if list_publications(registry):
        os._exit(9)
    return make_checkpoint().groups[0].blob()
new = GroupSource("layer.1", make_checkpoint(5).groups[2].blob)
publish(registry, "mini", replace(base, groups=[*base.groups[:2], new, GroupSource("layer.2", die)]), "prod")
"""


def test_a_killed_publish_cannot_be_seen(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint(0, LAYERS), "prod")
    before = find_files(f"{tmp_path}/blobs")
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=180, check=False).returncode == 9
    assert len(find_files(f"{tmp_path}/blobs").keys() - before.keys()) == 1
    assert [version.snapshot for version in registry.versions("mini")] == [first.snapshot]
    assert registry.resolve("mini@prod").sequence == 0
    (publication,) = list_publications(registry)
    assert [holder.job for holder in locks.list_holders(registry, first.snapshot)] == [publication.job]
