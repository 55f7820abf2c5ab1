from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from daskinfer.errors import CheckpointError, SnapshotGone, StorageError
from daskinfer.spec.snapshot import EntryPoint, LayerGroup, Manifest
from daskinfer.storage.objects.filesystem import read_bytes
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import CheckpointSource, GroupSource, Origin, finish_all, publish
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, be_busy, break_connection, lose_acknowledgement
from daskinfer.testing.fixtures.checkpoints import make_checkpoint

# A process that dies right after its n-th exclusive create.
CRASHER = """
import os, sys
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
link, steps = os.link, int(sys.argv[2])
def link_or_die(source, target):
    global steps
    link(source, target)
    if steps == 0:
        os._exit(9)
    steps -= 1
registry = Registry(sys.argv[1])
os.link = link_or_die
publish(registry, "mini", make_checkpoint(1, ("embeddings",)), "prod")
"""

PUBLISHER = """
import sys
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
for turn in range(3):
    print(publish(Registry(sys.argv[1]), "mini", make_checkpoint(int(sys.argv[2]) * 10 + turn), "prod").snapshot)
"""


def check_whole(registry: Registry, snapshot: str) -> Manifest:
    manifest = registry.manifest(snapshot)
    for piece in manifest.files:
        registry.file(manifest, piece.path)
    for group in manifest.groups:
        assert group.blob is not None
        data = read_bytes(join_url(registry.url, group.blob))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (group.size, group.sha256)
        for entry in group.tensors:
            assert blake3(data[entry.begin : entry.end]).hexdigest() == entry.blake3
    return manifest


def read_blob(registry: Registry, group: LayerGroup) -> bytes:
    assert group.blob is not None
    return read_bytes(join_url(registry.url, group.blob))


def count_blobs(url: Path) -> int:
    return sum(1 for path in (url / "blobs").rglob("*") if path.is_file())


def test_published_content_is_what_was_given(any_store: str) -> None:
    registry = Registry(any_store)
    source = make_checkpoint()
    resolution = publish(registry, "mini", source, "prod")
    assert (resolution.reference, resolution.version, resolution.sequence) == ("mini@prod", 1, 0)
    manifest = check_whole(registry, resolution.snapshot)
    assert [group.name for group in manifest.groups] == ["embeddings", "layer.0", "layer.1"]
    for group, given in zip(manifest.groups, source.groups, strict=True):
        assert read_blob(registry, group) == given.blob()
    assert {piece.path: registry.file(manifest, piece.path) for piece in manifest.files} == source.files


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint(), "prod")
    blobs = count_blobs(tmp_path)
    again = publish(registry, "mini", replace(make_checkpoint(), provenance={"source": "elsewhere"}), "prod")
    assert (again.snapshot, again.version, again.sequence) == (first.snapshot, 1, 0)
    assert publish(registry, "mini", make_checkpoint(), "canary").alias == "canary"
    assert publish(registry, "mini", make_checkpoint(), None).version == 1
    assert count_blobs(tmp_path) == blobs
    assert publish(registry, "mini", make_checkpoint(1), "prod").version == 2
    back = publish(registry, "mini", make_checkpoint(), "prod")
    assert (back.version, back.sequence) == (1, 2)
    assert publish(registry, "other", make_checkpoint(), None).version == 1


def test_damaged_and_deleted_versions_are_not_equal_ones(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint(), None)
    blob = tmp_path / str(registry.manifest(first.snapshot).groups[1].blob)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    second = publish(registry, "mini", make_checkpoint(), None)
    assert second.version == 2
    check_whole(registry, second.snapshot)
    for operation in ("condemn", "sweep"):
        registry.life_log(second.snapshot).append({"op": operation})
    assert publish(registry, "mini", make_checkpoint(), None).version == 3


def test_what_a_snapshot_says_of_itself(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    parent = publish(registry, "mini", make_checkpoint(), None).snapshot
    entry = EntryPoint(function="mine:build", source="sha256:" + "0" * 64)
    source = replace(make_checkpoint(1), tied={"head.weight": "embeddings.weight"}, entry=entry, parent=parent)
    files = {**source.files, "LICENSE": b"free"}
    manifest = registry.manifest(publish(registry, "mini", replace(source, files=files)).snapshot)
    assert (manifest.tied, manifest.entry, manifest.parent) == (source.tied, entry, parent)
    assert registry.file(manifest, "LICENSE") == b"free"
    assert publish(registry, "mini", replace(source, tied={}, files=files)).version == 3


def test_groups_by_reference_are_not_copied(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    copied = make_checkpoint()
    groups = []
    for number, group in enumerate(copied.groups):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(b"before" + group.blob())
        begin = 6 + 8 + int.from_bytes(group.blob()[:8], "little")
        # As make_checkpoint writes them: the bias of 8 floats, then the weight of 16 x 8.
        origins = {
            f"{group.name}.bias": Origin(str(file), begin, begin + 32),
            f"{group.name}.weight": Origin(str(file), begin + 32, begin + 32 + 512),
        }
        groups.append(replace(group, origins=origins if number else None))
    source = replace(copied, groups=groups)
    first = publish(registry, "mini", source, None)
    manifest = registry.manifest(first.snapshot)
    assert [group.blob is None for group in manifest.groups] == [False, True, True]
    for layer in manifest.groups[1:]:
        for entry in layer.tensors:
            assert entry.file is not None
            data = Path(entry.file).read_bytes()[entry.begin : entry.end]
            assert blake3(data).hexdigest() == entry.blake3
    assert count_blobs(tmp_path / "registry") == len(source.files) + 1
    assert publish(registry, "mini", source, None) == first
    # A copy is something else, for the files may go; and once there is one, a reference adds nothing.
    copy = publish(registry, "mini", copied, None)
    assert copy.version == 2
    assert registry.manifest(copy.snapshot).content == manifest.content
    check_whole(registry, copy.snapshot)
    assert publish(registry, "mini", source, None).version == 2
    moved = {name: replace(one, url=f"{one.url}.moved") for name, one in (groups[1].origins or {}).items()}
    elsewhere = replace(source, groups=[groups[0], replace(groups[1], origins=moved), groups[2]])
    assert publish(registry, "other", source, None).version == 1
    assert publish(registry, "other", elsewhere, None).version == 2


def test_progress_is_told_after_every_group(tmp_path: Path) -> None:
    source = make_checkpoint()
    source = replace(source, groups=[replace(group, size=100) for group in source.groups])
    told: list[tuple[str, int, int]] = []
    for _ in range(2):
        publish(Registry(str(tmp_path)), "mini", source, watch=lambda *numbers: told.append(numbers))
    steps = [(100, 300), (200, 300), (300, 300)]
    assert told == [("storing", *step) for step in steps] + [("comparing", *step) for step in steps]


@pytest.mark.late
def test_a_crash_leaves_all_or_nothing(tmp_path: Path) -> None:
    outcomes = []
    for step in range(40):
        registry = Registry(str(tmp_path / str(step)))
        before = publish(registry, "mini", make_checkpoint(0), "prod")
        command = [sys.executable, "-c", CRASHER, registry.url, str(step)]
        code = subprocess.run(command, check=False, timeout=180).returncode
        if step % 2:  # otherwise the next publish has to finish it
            finished = finish_all(registry)
            versions = registry.versions("mini")
            head = registry.resolve("mini@prod")
            if len(versions) == 1:
                assert head == before and not finished
            else:
                assert head.version == 2
                check_whole(registry, head.snapshot)
                assert len(registry.alias_history("mini", "prod")) == 2
            outcomes.append(len(versions))
        # Whatever happened, the same command ends well and stores no second version.
        assert publish(registry, "mini", make_checkpoint(1, ("embeddings",)), "prod").version == 2
        assert [version.number for version in registry.versions("mini")] == [1, 2]
        assert finish_all(registry) == []
        if code == 0:
            break
    assert code == 0
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


def test_a_late_finisher_does_not_move_the_alias_back(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    publish(registry, "mini", make_checkpoint(0), "prod")
    publish(registry, "mini", make_checkpoint(1), "prod")
    (publishing,) = [
        path for path in (tmp_path / "publish").iterdir() if registry.versions("mini")[1].publish == path.name
    ]
    set_alias(registry, "mini", "prod", "v1")
    publishing.with_suffix(".done").unlink()
    assert [version.number for version in finish_all(registry)] == [2]
    assert registry.resolve("mini@prod").version == 1
    assert len(registry.versions("mini")) == 2


def test_processes_that_publish_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path)]
    publishers = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE) for number in range(3)]
    outputs = [publisher.communicate(timeout=180)[0].decode().split() for publisher in publishers]
    assert [publisher.returncode for publisher in publishers] == [0, 0, 0]
    registry = Registry(str(tmp_path))
    versions = registry.versions("mini")
    assert [version.number for version in versions] == list(range(1, 10))
    assert len({check_whole(registry, version.snapshot).content for version in versions}) == 9
    assert {snapshot for output in outputs for snapshot in output} <= {version.snapshot for version in versions}


@pytest.mark.s3
def test_publishing_through_faults_on_s3(s3_url: str) -> None:
    registry = Registry(f"{s3_url}/faulty")
    for seed, fault in enumerate((lose_acknowledgement, break_connection, be_busy)):
        with FaultyFS(s3_url, "pipe_file", fault, times=4, after=1) as faults:
            resolution = publish(registry, "mini", make_checkpoint(seed), "prod")
        assert faults.hits == 4
        assert (resolution.version, resolution.sequence) == (seed + 1, seed)
        check_whole(registry, resolution.snapshot)


def test_a_publish_that_was_given_up_says_so(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))

    def abort_meanwhile() -> bytes:
        (folder,) = (path for path in (tmp_path / "publish").iterdir() if path.is_dir())
        SlotLog(str(folder)).append({"op": "abort"}, expect=1)
        return make_checkpoint().groups[0].blob()

    source = replace(make_checkpoint(), groups=[GroupSource("embeddings", abort_meanwhile)])
    with pytest.raises(StorageError, match="garbage collection gave it up"):
        publish(registry, "mini", source, "prod")
    assert registry.names() == []
    assert finish_all(registry) == []


def test_a_failed_source_leaves_no_blobs(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    good = make_checkpoint().groups[0]
    whole = good.blob()
    for broken in (b"pickle", whole[:-1], whole + b"x", b""):
        source = replace(make_checkpoint(), groups=[good, GroupSource("layer.0", lambda broken=broken: broken)])  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=r"layer.0 is not a"):
            publish(registry, "mini", source, "prod")
    assert count_blobs(tmp_path) == 0
    assert registry.names() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"pytorch_model.bin": b"x"}}, "not a configuration"),
        ({"files": {"../config.json": b"x"}}, "not a configuration"),
        ({"files": {"/etc/config.json": b"x"}}, "not a configuration"),
        ({"files": {"config.json": b""}}, "empty"),
        ({"groups": []}, "needs layer groups"),
        ({"groups": [GroupSource("a", bytes), GroupSource("a", bytes)]}, "names of their own"),
    ],
)
def test_unsafe_sources_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    source: CheckpointSource = replace(make_checkpoint(), **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        publish(Registry(str(tmp_path)), "mini", source, "prod")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "alias"), [("a/b", "prod"), (".hidden", "prod"), ("mini", "pr@d"), ("mini", "v7"), ("", None)]
)
def test_names_are_checked(tmp_path: Path, name: str, alias: str | None) -> None:
    with pytest.raises(CheckpointError, match="not allowed as"):
        publish(Registry(str(tmp_path)), name, make_checkpoint(), alias)


def test_an_alias_on_a_swept_version_is_refused(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint(), "prod")
    registry.life_log(first.snapshot).append({"op": "condemn"})
    registry.life_log(first.snapshot).append({"op": "sweep"})
    with pytest.raises(SnapshotGone):
        set_alias(registry, "mini", "next", first.snapshot)
