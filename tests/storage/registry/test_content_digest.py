from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from daskinfer.errors import CorruptBlob
from daskinfer.ids import canonical_json, sha256_of, shorten
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.manifests import parse_manifest
from daskinfer.storage.registry.publishing.publications import list_publications
from daskinfer.storage.registry.publishing.publish import finish_all, publish
from daskinfer.storage.registry.syncing.sync import sync
from daskinfer.storage.registry.yanking import yank
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.fixtures.registries import LAST, NOTHING, check_registry, read_all


def test_the_same_content_has_one_digest_anywhere(tmp_path: Path) -> None:
    """Whatever its name, its place, its publisher and the versions before it."""
    one, two = Registry(str(tmp_path / "one")), Registry(str(tmp_path / "two"))
    first = publish(one, "mini", make_checkpoint())
    publish(two, "mini", make_checkpoint(1))
    moved = replace(make_checkpoint(), provenance={"source": "elsewhere"}, parent=first.snapshot)
    second = publish(two, "other-name", moved, "prod")
    assert (second.name, second.snapshot) == ("other-name", first.snapshot)
    assert publish(two, "mini", make_checkpoint()).snapshot == first.snapshot
    assert [version.snapshot == first.snapshot for version in two.versions("mini")] == [False, True]
    for registry in (one, two):
        check_registry(registry)


def test_what_a_killed_publish_left_changes_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, hurt = Registry(str(tmp_path / "clean")), Registry(str(tmp_path / "hurt"))
    expected = publish(clean, "mini", make_checkpoint()).snapshot
    with monkeypatch.context() as patch:
        patch.setattr("daskinfer.storage.registry.publishing.publish.choose_snapshot", lambda *given: 1 / 0)
        patch.setattr("daskinfer.storage.registry.publishing.publish.abort", lambda *given: False)
        with pytest.raises(ZeroDivisionError):
            publish(hurt, "mini", make_checkpoint())
    assert [each.state for each in list_publications(hurt)] == ["begun"]
    assert publish(hurt, "mini", make_checkpoint()).snapshot == expected


def test_publishers_of_one_content_at_once_make_one_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(str(tmp_path))
    registry.initialise()
    monkeypatch.setattr("daskinfer.storage.registry.publishing.publish._find_equal", lambda *given: None)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda turn: publish(registry, f"mini{turn % 2}", make_checkpoint(), "prod"), range(4)))
    assert len({each.snapshot for each in found}) == 1
    # As when one comes after the other: a snapshot is one version of a name.
    assert [len(registry.versions(name)) for name in ("mini0", "mini1")] == [1, 1]
    finish_all(registry)
    check_registry(registry)
    registry.alias_log("mini0", "prod")
    assert collect(registry, NOTHING).deleted == ()  # an alias of either name keeps it
    read_all(registry, registry.manifest(found[0].snapshot))


def test_a_deleted_digest_never_lives_again(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = publish(registry, "mini", make_checkpoint())
    publish(registry, "mini", make_checkpoint(1))
    assert [each.snapshot for each in collect(registry, LAST).deleted] == [first.snapshot]
    again = publish(registry, "mini", make_checkpoint())
    assert again.snapshot != first.snapshot
    assert registry.life(first.snapshot) == "swept"
    check_registry(registry)


def test_yanks_are_of_a_name(tmp_path: Path) -> None:
    """Two names of one snapshot: what is yanked under one is not under the other."""
    registry = Registry(str(tmp_path))
    one, two = (publish(registry, name, make_checkpoint()) for name in ("one", "two"))
    assert one.snapshot == two.snapshot
    yank(registry, "one", "v1", "wrong")
    assert registry.resolve("two").snapshot == one.snapshot
    assert registry.find_version("one", "v1").yanked is not None


def test_what_two_registries_published_is_one_version_and_yanked_as_one(tmp_path: Path) -> None:
    here, there = Registry(str(tmp_path / "here")), Registry(str(tmp_path / "there"))
    for seed in (0, 1):
        publish(here, "mini", make_checkpoint(seed))
    publish(there, "mini", make_checkpoint(1))
    sync(there, here)
    sync(here, there)
    yank(here, "mini", "v2", "wrong")
    sync(here, there)
    good = here.find_version("mini", "v1").snapshot
    for registry in (here, there):
        assert len(registry.versions("mini")) == 2
        assert registry.resolve("mini").snapshot == good


def test_older_snapshots_keep_their_digest(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    manifest = registry.manifest(publish(registry, "mini", make_checkpoint()).snapshot)
    fields = manifest.model_dump(mode="json", exclude={"salt", "checksum"})
    older = canonical_json(fields | {"schema_": "daskinfer.snapshot/1", "provenance": {"publish": "0123abcd"}})
    digest = sha256_of(older)
    Path(registry.manifest_url(digest)).write_bytes(older)
    found = registry.manifest(digest)
    assert found.digest == digest
    assert found.encode() == older
    assert found.content == manifest.content
    assert parse_manifest(json.loads(older), "a record").digest == digest


def test_any_byte_of_a_manifest_that_changes_is_seen(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    snapshot = publish(registry, "mini", make_checkpoint()).snapshot
    path = Path(registry.manifest_url(snapshot))
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CorruptBlob, match=shorten(snapshot)):
            registry.manifest(snapshot)
