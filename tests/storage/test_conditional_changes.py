"""Objects are replaced and deleted only while they are the ones that were seen."""

from __future__ import annotations

import pytest

from daskinfer.ids import make_nonce
from daskinfer.storage.conditional import delete_marked, mark_of, put_marked
from daskinfer.storage.exclusive import create
from daskinfer.storage.filesystem import exists, open_filesystem, read_bytes
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.urls import join_url


@pytest.mark.s3
@pytest.mark.parametrize("store", ["s3_url", "gcs_url"])
def test_another_object_by_that_name_stays(request: pytest.FixtureRequest, store: str) -> None:
    url = join_url(request.getfixturevalue(store), make_nonce(), "object")
    filesystem, path = open_filesystem(url)
    assert mark_of(filesystem, path) is None
    create(url, b"first")
    seen = mark_of(filesystem, path)
    assert seen is not None
    assert put_marked(filesystem, path, b"second", seen)
    assert not put_marked(filesystem, path, b"late", seen)
    delete_marked(filesystem, path, seen)
    assert read_bytes(url) == b"second"
    now = mark_of(filesystem, path)
    assert now is not None
    delete_marked(filesystem, path, now)
    assert not exists(url) and not put_marked(filesystem, path, b"late", now)
    delete_marked(filesystem, path, now)
    fence = Fence(url.rpartition("/")[0], "job")
    fence.replace(url, b"third")
    fence.replace(url, b"fourth")
    assert read_bytes(url) == b"fourth"
    fence.remove(url)
    assert not exists(url)
