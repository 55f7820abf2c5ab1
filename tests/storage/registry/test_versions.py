from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import CheckpointError, YankedVersion
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.publishing.publish import finish_all, publish
from daskinfer.storage.registry.version_log import fold
from daskinfer.storage.registry.yanking import unyank, yank
from daskinfer.testing.fixtures.checkpoints import make_checkpoint, make_registry


def test_no_name_leads_to_a_yanked_version(any_store: str) -> None:
    registry = make_registry(any_store)
    third = registry.versions("mini")[2]
    yank(registry, "mini", "v3", "trained on the test set")
    assert registry.resolve("mini").version == 2
    for reference in ("mini@v3", "mini@prod", f"mini@{third.snapshot[:20]}"):
        with pytest.raises(
            YankedVersion, match=r"v3 was yanked by \S+@\S+ at 20\S+: trained on the test set"
        ) as refused:
            registry.resolve(reference)
        assert refused.value.hint and third.snapshot in refused.value.hint
        assert registry.resolve(reference, yanked=True).snapshot == third.snapshot
    assert registry.resolve(f"mini@{third.snapshot}").version == 3
    locks.take(registry, third.snapshot, "job-1").release()  # as a resumed job does
    assert publish(registry, "mini", make_checkpoint(7)).version == 4
    unyank(registry, "mini", "v3")
    assert registry.resolve("mini@prod").version == 3
    assert [version.number for version in registry.versions("mini")] == [1, 2, 3, 4]


def test_wrong_yanks_are_refused(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=1)
    with pytest.raises(CheckpointError, match="v1 is not yanked"):
        unyank(registry, "mini", "v1")
    assert yank(registry, "mini", registry.versions("mini")[0].snapshot).number == 1
    with pytest.raises(CheckpointError, match="yanked already"):
        yank(registry, "mini", "v1")
    for target, message in (
        ("v2", "no version v2"),
        ("prod", "'prod' is not a version"),
        ("sha256:0", "not a snapshot"),
    ):
        with pytest.raises(CheckpointError, match=message):
            yank(registry, "mini", target)
    with pytest.raises(YankedVersion):
        registry.resolve("mini")


def test_yanked_content_cannot_be_published_again(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=2)
    yank(registry, "mini", "v1", "bad labels")
    with pytest.raises(YankedVersion, match="bad labels"):
        publish(registry, "mini", make_checkpoint(0), "prod")
    assert len(registry.versions("mini")) == 2
    assert registry.resolve("mini@prod").version == 2


def test_a_late_finisher_moves_no_alias_to_a_yanked_version(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, versions=2)
    identity = registry.versions("mini")[1].publish
    (tmp_path / f"models/mini/aliases/prod/{1:012d}.json").unlink()
    (tmp_path / f"publish/{identity}.done").unlink()
    yank(registry, "mini", "v2")
    assert [version.number for version in finish_all(registry)] == [2]
    assert registry.resolve("mini@prod").version == 1


def test_the_same_records_in_any_order_yank_the_same() -> None:
    signature: dict[str, Any] = {"by": "a@b", "at": "t", "reason": None}
    first = {"op": "publish", "snapshot": "sha256:1", "publish": "p", **signature}
    records: list[dict[str, Any]] = [
        {"op": "yank", "version": 1, "yank": "x", **signature},
        {"op": "unyank", "version": 1, "undoes": ["x"], **signature},
        {"op": "yank", "version": 1, "yank": "y", **signature},
        {"op": "unyank", "version": 1, "undoes": ["z"], **signature},
    ]
    for order in itertools.permutations(records):
        (version,) = fold([first, *order])
        assert [each.identity for each in version.yanks] == ["y"]
