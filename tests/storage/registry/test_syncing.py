from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError, CorruptBlob, IntegrityError, StorageError, UsageError
from daskinfer.ids import canonical_json, make_nonce, sha256_of, shorten
from daskinfer.knobs import ONE_PUT, UPLOAD_PART
from daskinfer.spec.registry.upkeep import SyncReport
from daskinfer.spec.snapshot import Manifest
from daskinfer.storage.objects.filesystem import delete, find_files, list_names
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import aliases
from daskinfer.storage.registry.access.keys import make_key
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection import marks
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.publishing.publications import list_publications, publish_log
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.storage.registry.signatures import require_signatures, sign
from daskinfer.storage.registry.syncing import copying
from daskinfer.storage.registry.syncing.merging import Side
from daskinfer.storage.registry.syncing.sync import sync
from daskinfer.storage.registry.yanking import unyank, yank
from daskinfer.testing.fixtures.checkpoints import make_checkpoint, make_registry
from daskinfer.testing.fixtures.registries import LAST, NOTHING, check_registry
from daskinfer.testing.stress.campaigns import campaign_size

KILLED = """
import os, sys
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.syncing.sync import sync
sync(Registry(sys.argv[1]), Registry(sys.argv[2]), watch=lambda doing, done, total: done < total / 2 or os._exit(9))
"""


def versions(report: SyncReport) -> list[tuple[int, str, int | None]]:
    return [(row.number, row.outcome, row.becomes) for row in report.versions]


def outcomes(report: SyncReport) -> dict[str, str]:
    return {row.alias: row.outcome for row in report.aliases}


def list_decided(registry: Registry) -> dict[str, int]:
    """Everything but the audit, which tells of locks too."""
    return {path: size for path, size in find_files(registry.url).items() if not path.startswith("audit/")}


def make_pair(tmp_path: Path) -> tuple[Registry, Registry]:
    return make_registry(tmp_path / "source", versions=2), Registry(str(tmp_path / "target"))


def make_related(tmp_path: Path) -> tuple[Registry, Registry]:
    """The second version shares blobs with the first."""
    source = Registry(str(tmp_path / "source"))
    first, other = make_checkpoint(0), make_checkpoint(1)
    publish(source, "mini", first, "prod")
    publish(source, "mini", replace(first, groups=[*first.groups[:2], other.groups[2]]), "prod")
    return source, Registry(str(tmp_path / "target"))


def test_everything_comes_along(any_store: str, other_store: str, tmp_path: Path) -> None:
    kinds = {url.partition("://")[0] for url in (any_store, other_store) if "://" in url}
    if "s3" in kinds and "://" in any_store and "://" in other_store and campaign_size(1, 0):
        pytest.skip("S3 and this disk are tried every day, S3 and other stores in a campaign")
    source, target = make_registry(any_store), Registry(other_store)
    own = publish(target, "mini", make_checkpoint(9), "canary").snapshot
    yank(source, "mini", "v2", "bad labels")
    key = str(tmp_path / "ann.key")
    make_key(key)
    first = source.resolve("mini@v1")
    sign(source, first, key)
    before = list_decided(source)
    report = sync(source, target)
    assert versions(report) == [(1, "copied", 2), (2, "copied", 3), (3, "copied", 4)]
    assert (outcomes(report), report.yanks, report.signatures, report.clean) == ({"prod": "forward"}, 1, 1, True)
    assert [each.snapshot for each in target.versions("mini")] == [
        own,
        *(each.snapshot for each in source.versions("mini")),
    ]
    assert [each.publish for each in target.versions("mini")[1:]] == [each.publish for each in source.versions("mini")]
    assert [each.yanked is not None for each in target.versions("mini")] == [False, False, True, False]
    assert target.resolve("mini@prod").snapshot == source.resolve("mini@prod").snapshot
    assert target.alias_log("mini", "prod").read_raw() == source.alias_log("mini", "prod").read_raw()
    require_signatures(target, first.snapshot, [f"{key}.pub"])
    check_registry(target)
    assert list_decided(source) == before
    unyank(source, "mini", "v2")
    aliases.set_alias(source, "mini", "prod", "v2")
    report = sync(source, target)
    assert (outcomes(report), report.yanks) == ({"prod": "forward"}, 1)
    assert target.resolve("mini@prod").version == 3
    before = list_decided(target)
    report = sync(source, target)
    assert {row.outcome for row in report.versions} == {"there"} and outcomes(report) == {"prod": "equal"}
    assert list_decided(target) == before


def test_one_version_or_one_alias_may_be_asked_for(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    report = sync(source, target, ["mini@v1"])
    assert (versions(report), report.aliases) == ([(1, "copied", 1)], ())
    assert target.alias_names("mini") == []
    report = sync(source, target, ["mini@prod"])
    assert (versions(report), outcomes(report)) == ([(2, "copied", 2)], {"prod": "forward"})
    for wrong in ("mini@v3", "mini@canary", "maxi", "mini@"):
        with pytest.raises(CheckpointError):
            sync(source, target, [wrong])
    with pytest.raises(CheckpointError, match="nothing to resolve"):
        sync(source, target, ["mini@v1"], resolve={"mini@prod": "source"})
    with pytest.raises(UsageError, match="with itself"):
        sync(source, Registry(source.url))
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        sync(Registry(str(tmp_path / "none")), target)


@pytest.mark.parametrize("keep", ["source", "target"])
def test_aliases_that_moved_in_both_wait_for_a_choice(tmp_path: Path, keep: Side) -> None:
    source, target = make_pair(tmp_path)
    sync(source, target)
    publish(source, "mini", make_checkpoint(5), "prod")
    aliases.set_alias(target, "mini", "prod", "v1")
    before = target.alias_log("mini", "prod").read_raw()
    report = sync(source, target)
    assert (outcomes(report), report.clean, versions(report)[2]) == ({"prod": "conflict"}, False, (3, "copied", 3))
    foreseen = sync(source, target, resolve={"mini@prod": keep}, dry_run=True)
    assert outcomes(foreseen) == {"prod": "merged"}
    assert target.alias_log("mini", "prod").read_raw() == before
    report = sync(source, target, resolve={"mini@prod": keep})
    assert (outcomes(report), report.clean) == ({"prod": "merged"}, True)
    wanted = source.resolve("mini@v3" if keep == "source" else "mini@v1").snapshot
    assert target.resolve("mini@prod").snapshot == wanted
    assert target.alias_log("mini", "prod").read_raw()[:-1] == before
    assert outcomes(sync(source, target)) == {"prod": "equal" if keep == "source" else "ahead"}
    assert outcomes(sync(target, source)) == {"prod": "equal" if keep == "source" else "adopt"}
    assert source.resolve("mini@prod").snapshot == wanted
    for one, other in ((source, target), (target, source)):
        assert outcomes(sync(one, other)) == {"prod": "equal"}


def test_a_dry_run_foresees_and_writes_nothing(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    yank(source, "mini", "v1")
    before = find_files(source.url)
    foreseen = sync(source, target, dry_run=True)
    assert find_files(target.url) == {} and find_files(source.url) == before
    report = sync(source, target)
    assert [(row.outcome, row.size) for row in foreseen.versions] == [
        (row.outcome, row.size) for row in report.versions
    ]
    assert (foreseen.aliases, foreseen.yanks) == (report.aliases, report.yanks)


def interrupt(source: Registry, target: Registry) -> None:
    command = [sys.executable, "-c", KILLED, source.url, target.url]
    assert subprocess.run(command, timeout=180, check=False).returncode == 9


def test_an_interrupted_sync_is_invisible_and_gone_on_with(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    interrupt(source, target)
    assert target.names() == [] and find_files(join_url(target.url, "manifests")) == {}
    (begun,) = list_publications(target)
    blobs = find_files(join_url(target.url, "blobs"))
    assert begun.state == "begun" and any(name.endswith(".tmp") for name in blobs)
    collect(target, NOTHING)  # it may still live
    assert find_files(join_url(target.url, "blobs")) == blobs
    report = sync(source, target)
    assert [row[1] for row in versions(report)] == ["copied", "copied"]
    assert list_publications(target) == [] and len(list_names(join_url(target.url, "publish"))) == 4
    check_registry(target)


def test_an_interrupted_sync_that_nobody_goes_on_with_is_cleaned_up(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    interrupt(source, target)
    (begun,) = list_publications(target)
    assert collect(target, LAST, assume_dead=[begun.job]).orphan_blobs > 1
    assert find_files(join_url(target.url, "blobs")) == {}
    assert [row[1] for row in versions(sync(source, target))] == ["copied", "copied"]
    check_registry(target)


def test_a_copy_that_was_committed_and_cut_off_is_finished(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    sync(source, target, ["mini@v1"])
    for path in ("manifests", "models"):
        delete(join_url(target.url, path), recursive=True)
    for path in find_files(join_url(target.url, "publish")):
        if path.endswith(".done"):
            delete(join_url(target.url, "publish", path))
    assert versions(sync(source, target, ["mini@v1"])) == [(1, "there", 1)]
    assert target.versions("mini")[0].publish == source.versions("mini")[0].publish
    check_registry(target)


def test_what_was_deleted_in_the_target_stays_deleted(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    sync(source, target)
    assert len(collect(target, NOTHING).deleted) == 1
    aliases.set_alias(source, "mini", "old", "v1")
    report = sync(source, target)
    assert versions(report) == [(1, "deleted", 1), (2, "there", 2)]
    assert (outcomes(report), report.clean) == ({"old": "blocked", "prod": "equal"}, False)
    assert report.aliases[0].problem is not None and "deleted" in report.aliases[0].problem
    assert target.alias_names("mini") == ["prod"]
    check_registry(target)


@pytest.mark.parametrize("kind", ["version", "copy"])
def test_an_unfinished_deletion_is_waited_for_then_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that died, of a version or of a copy that was given up, might be about to delete the same blobs."""
    source, target = make_related(tmp_path)
    second = source.manifest(source.resolve("mini@v2").snapshot)
    log = begin_deletion(source, target, kind, second)
    marks.begin(target.url, log, "gc-0000dead")
    before = target.versions("mini")
    with monkeypatch.context() as patch:
        patch.setattr(copying, "_COLLECTOR_SECONDS", 0.6)
        with pytest.raises(StorageError, match=f"{log.url.removeprefix(target.url)[1:]}") as refused:
            sync(source, target, ["mini@v2"])
    assert refused.value.hint and "checkpoint gc" in refused.value.hint
    assert target.versions("mini") == before
    collect(target, LAST, assume_dead=["gc-0000dead"])
    assert versions(sync(source, target, ["mini@v2"]))[0][:2] == (2, "copied")
    assert target.manifest(second.digest) == second
    check_registry(target)


def test_a_deletion_that_ends_meanwhile_lets_the_copy_go_on(tmp_path: Path) -> None:
    source, target = make_related(tmp_path)
    log = begin_deletion(source, target, "copy", source.manifest(source.resolve("mini@v2").snapshot))
    marks.begin(target.url, log, "gc-00000001")
    ending = threading.Timer(0.3, marks.end, (target.url, log, "gc-00000001"))
    ending.start()
    assert versions(sync(source, target, ["mini@v2"])) == [(2, "copied", 1)]
    ending.join()
    check_registry(target)


def begin_deletion(source: Registry, target: Registry, kind: str, manifest: Manifest) -> SlotLog:
    """Decide that blobs of a manifest are deleted in the target; return the log that says so."""
    if kind == "version":
        sync(source, target, ["mini@v1"])
        log = target.life_log(source.resolve("mini@v1").snapshot)
        for operation in ("condemn", "sweep"):
            log.append({"op": operation})
        return log
    target.initialise()
    log = publish_log(target, "0000beef")
    signature = {"by": "ann@host", "at": "2026-11-25T00:00:00+00:00"}
    log.append({"op": "begin", "name": "mini", "manifest": manifest.model_dump(mode="json"), **signature})
    log.append({"op": "abort", **signature})
    return log


@pytest.mark.s3
@ONE_PUT.override(2**20)
@UPLOAD_PART.override(5 * 2**20)
def test_blobs_larger_than_a_part(s3_url: str, tmp_path: Path) -> None:
    source, target = (Registry(f"{s3_url}/{make_nonce()}") for _ in range(2))
    origin = Registry(str(tmp_path))
    publish(origin, "mini", make_checkpoint(0, ("layer",), rows=400_000), "prod")
    done: list[int] = []
    sync(origin, source, watch=lambda doing, count, total: done.append(total - count))
    sync(source, target)
    assert len(done) > 2 and done[-1] == 0 and done == sorted(done, reverse=True)
    check_registry(target)
    assert target.versions("mini") == origin.versions("mini")


def test_what_is_damaged_is_not_copied(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    (path, *_) = source.manifest(source.resolve("mini@v1").snapshot).blobs
    whole = Path(source.url, path).read_bytes()
    for damaged in (whole[:-1] + b"!", whole[:-1], None):
        Path(source.url, path).unlink()
        if damaged is not None:
            Path(source.url, path).write_bytes(damaged)
        with pytest.raises(CorruptBlob, match="gone or damaged"):
            sync(source, target)
        assert target.names() == []
    Path(source.url, path).write_bytes(whole)
    Path(target.url, path).parent.mkdir(parents=True, exist_ok=True)
    Path(target.url, path).write_bytes(b"other")
    with pytest.raises(CorruptBlob, match="there with other bytes"):
        sync(source, target)
    delete(join_url(target.url, path))
    assert sync(source, target).clean
    check_registry(target)


@pytest.mark.parametrize("blob", ["../victim", "blobs/../../victim", "/victim", "blobs/\x1b[2J"])
def test_a_manifest_that_names_what_lies_outside_is_not_followed(tmp_path: Path, blob: str) -> None:
    source, target = make_pair(tmp_path)
    (tmp_path / "victim").write_bytes(b"import os\n")
    slot = source.versions_log("mini").slot_url(0)
    record = json.loads(Path(slot).read_bytes())
    old = Path(source.manifest_url(record["snapshot"]))
    changed = json.loads(old.read_bytes())
    changed["files"][0] |= {"blob": blob, "size": 10, "sha256": shorten(sha256_of(b"import os\n"), 64)}
    data = canonical_json(changed)
    Path(source.manifest_url(sha256_of(data))).write_bytes(data)
    Path(slot).write_bytes(canonical_json(record | {"snapshot": sha256_of(data)}))
    with pytest.raises(CorruptBlob, match=r"cannot be followed: .* is not a path inside"):
        sync(source, target)
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "target", "victim"}


def test_a_snapshot_that_is_no_digest_is_not_followed(tmp_path: Path) -> None:
    source, target = make_pair(tmp_path)
    slot = Path(source.versions_log("mini").slot_url(0))
    slot.write_bytes(canonical_json(json.loads(slot.read_bytes()) | {"snapshot": "sha256:../../../victim"}))
    with pytest.raises(IntegrityError):
        sync(source, target)
