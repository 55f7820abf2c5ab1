"""Whoever has lost an output changes nothing in it, on any store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from daskinfer.errors import JobBusy, OutputOwned
from daskinfer.storage.objects import create_if_absent
from daskinfer.storage.objects.filesystem import exists, read_bytes, replace_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.owner import Owner, claim, confirm

ONE, OTHER = (Owner(job=job, request=job, snapshot="sha256:0", created="") for job in ("one", "other"))


def test_only_the_owner_changes_anything(any_store: str) -> None:
    url = join_url(any_store, "out")
    place, folder, new = (join_url(url, name) for name in ("part", "array/c/0", "new"))
    claim(url, ONE, None)
    fence = Fence(url, "one")
    assert fence.create(place, b"old") and fence.create(folder, b"old")
    claim(url, OTHER, ONE)
    changes: tuple[Callable[[], object], ...] = (
        lambda: fence.create(new, b"new"),
        lambda: fence.replace(place, b"new"),
        lambda: fence.replace(new, b"new"),
        lambda: fence.remove(place),
        lambda: fence.remove(join_url(url, "array"), recursive=True),
    )
    for change in changes:
        with pytest.raises(OutputOwned, match="taken over by job other; job one stops"):
            change()
    with pytest.raises(OutputOwned, match="taken over by job other"):
        confirm(url, "one")
    assert (read_bytes(place), read_bytes(folder), exists(new)) == (b"old", b"old", False)


def test_a_driver_whose_life_is_over_replaces_and_removes_nothing(any_store: str) -> None:
    url = join_url(any_store, "out")
    place = join_url(url, "part")
    claim(url, ONE, None)
    Fence(url, "one").create(place, b"old")

    def refuse() -> None:
        raise JobBusy("a newer driver")

    fence = Fence(url, "one", turn=1, check=refuse)
    changes: tuple[Callable[[], object], ...] = (lambda: fence.replace(place, b"new"), lambda: fence.remove(place))
    for change in changes:
        with pytest.raises(JobBusy):
            change()
    assert read_bytes(place) == b"old"


@pytest.mark.s3
@pytest.mark.parametrize("replaced", [False, True])
def test_what_came_too_late_is_taken_back(s3_url: str, monkeypatch: pytest.MonkeyPatch, replaced: bool) -> None:
    """An object store cannot look at the owner as it creates: what it took in is deleted, unless it is another's by now."""
    url = join_url(s3_url, f"late-{replaced}")
    place, create = join_url(url, "part"), create_if_absent.create
    claim(url, ONE, None)

    def create_late(target: str, data: bytes) -> bool:
        monkeypatch.undo()
        claim(url, OTHER, ONE)
        created = create(target, data)
        if replaced:
            replace_bytes(target, b"other's")
        return created

    fence = Fence(url, "one")
    fence.confirm()
    monkeypatch.setattr(create_if_absent, "create", create_late)
    with pytest.raises(OutputOwned):
        fence.create(place, b"late")
    assert (read_bytes(place) if replaced else exists(place)) == (b"other's" if replaced else False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create_if_absent, "create", lambda *given: pytest.fail("it was not even to be asked"))
        with pytest.raises(OutputOwned):
            fence.create(join_url(url, "another"), b"late")
