from __future__ import annotations

from pathlib import Path

import pytest

from daskinfer.errors import CheckpointError, CorruptBlob, SnapshotGone
from daskinfer.ids import shorten
from daskinfer.storage.objects.filesystem import replace_bytes
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.checkpoints import make_registry


def test_references_on_every_store(any_store: str) -> None:
    registry = make_registry(any_store)
    first, second, third = registry.versions("mini")
    assert [version.number for version in (first, second, third)] == [1, 2, 3]
    by_alias = registry.resolve("mini@prod")
    assert (by_alias.snapshot, by_alias.version, by_alias.alias, by_alias.sequence) == (third.snapshot, 3, "prod", 2)
    assert registry.resolve("mini").snapshot == third.snapshot
    assert registry.resolve("mini@v2").snapshot == second.snapshot
    assert registry.resolve(f"mini@{first.snapshot}").version == 1
    assert registry.resolve(f"mini@{first.snapshot[: len('sha256:') + 8]}").snapshot == first.snapshot
    manifest = registry.manifest(second.snapshot)
    assert manifest.digest == second.snapshot
    assert registry.file(manifest, "vocab.txt") == b"[PAD]\nword1\n"
    assert registry.names() == ["mini"]
    assert Registry(any_store).resolve("mini@prod") == by_alias


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("minu@prod", "no checkpoint is named 'minu'", "Did you mean mini?"),
        ("mini@prd", "mini has no alias 'prd'", "Did you mean prod?"),
        ("mini@v9", "mini has no version v9", "It has v1 "),
        ("mini@sha256:00000000", "mini has no version sha256:00000000", "It has v1 "),
        ("mini@sha256:0000", "not a snapshot digest", "8 hex digits"),
        ("mini@", "names no version or alias", "mini@v1"),
        ("../mini@v1", "not allowed as checkpoint name", "letters"),
        ("mini@a/b", "not allowed as alias name", "letters"),
    ],
)
def test_wrong_references_are_explained(tmp_path: Path, reference: str, message: str, hint: str) -> None:
    registry = make_registry(tmp_path, versions=1)
    with pytest.raises(CheckpointError) as wrong:
        registry.resolve(reference)
    assert message in wrong.value.message
    assert wrong.value.hint and hint in wrong.value.hint


def test_a_missing_registry_is_empty_and_not_created(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "none"))
    assert registry.names() == []
    with pytest.raises(CheckpointError, match="no checkpoint is named 'mini'"):
        registry.resolve("mini")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("files", [{"notes.txt": b"mine"}, {"format.json": b"[1]"}, {"format.json": b"{"}])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="is not a daskinfer registry"):
        Registry(str(tmp_path))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_bytes(b'{"daskinfer_registry":2}')
    with pytest.raises(CheckpointError, match="Upgrade daskinfer"):
        Registry(str(tmp_path))


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=1)
    snapshot = registry.resolve("mini").snapshot
    path = Path(registry.manifest_url(snapshot))
    path.write_bytes(path.read_bytes().replace(b"TestModel", b"Testmodel"))
    with pytest.raises(CorruptBlob, match="its name says"):
        registry.manifest(snapshot)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=1)
    manifest = registry.manifest(registry.resolve("mini").snapshot)
    with pytest.raises(CheckpointError, match=r"no file 'vocab.tx'") as wrong:
        registry.file(manifest, "vocab.tx")
    assert wrong.value.hint == "Did you mean vocab.txt?"
    blob = tmp_path / next(piece.blob for piece in manifest.files if piece.path == "vocab.txt")
    blob.write_bytes(blob.read_bytes().replace(b"w", b"W"))
    with pytest.raises(CorruptBlob, match=r"vocab.txt of mini is damaged"):
        registry.file(manifest, "vocab.txt")
    blob.unlink()
    with pytest.raises(CorruptBlob, match=r"vocab.txt of mini is gone"):
        registry.file(manifest, "vocab.txt")


def test_life_of_a_snapshot(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=2)
    newest = registry.resolve("mini").snapshot
    assert registry.life(newest) == "live"
    log = registry.life_log(newest)
    for operation, life in (("condemn", "condemned"), ("live", "live"), ("condemn", "condemned"), ("sweep", "swept")):
        log.append({"op": operation})
        assert registry.life(newest) == life
    assert registry.resolve("mini").version == 1
    with pytest.raises(SnapshotGone, match="swept"):
        set_alias(registry, "mini", "stable", "v2")
    assert "stable" not in registry.aliases("mini")
    Path(registry.manifest_url(newest)).unlink()
    with pytest.raises(SnapshotGone, match=shorten(newest)):
        registry.manifest(newest)


def test_an_ambiguous_digest_is_refused(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=1)
    same = "sha256:" + "ab" * 31
    for end in ("00", "11"):
        registry.versions_log("mini").append(
            {"op": "publish", "snapshot": same + end, "publish": "0", "by": "a", "at": "b"}
        )
    with pytest.raises(CheckpointError, match="begins several snapshots"):
        registry.resolve(f"mini@{same[:20]}")


def test_stray_files_do_not_confuse(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=1)
    replace_bytes(str(tmp_path / "models/mini/aliases/prod/.DS_Store"), b"x")
    assert registry.resolve("mini@prod").version == 1
