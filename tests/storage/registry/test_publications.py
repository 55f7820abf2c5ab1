"""Publishes that were cut off, and what garbage collection does about them."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from daskinfer.errors import StorageError
from daskinfer.spec.registry.collection import CollectionReport
from daskinfer.storage.objects.filesystem import delete, find_files
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.collection.garbage_collection import collect
from daskinfer.storage.registry.publishing.publications import list_publications
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.fixtures.registries import LAST, NOTHING, VirtualTime, check_registry


def publish_first(url: Path) -> tuple[Registry, str]:
    registry = Registry(str(url))
    return registry, publish(registry, "mini", make_checkpoint(0), None).snapshot


def deleted(report: CollectionReport) -> list[str]:
    return [row.snapshot for row in report.deleted]


KILLED = """
import os, sys
from dataclasses import replace
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publications import list_publications
from daskinfer.storage.registry.publishing.publish import GroupSource, publish
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
registry = Registry(sys.argv[1])
def die():
    if list_publications(registry):
        os._exit(9)
    return make_checkpoint().groups[0].blob()
base = make_checkpoint(0)
new = GroupSource("layer.0", make_checkpoint(5).groups[1].blob)
publish(registry, "mini", replace(base, groups=[base.groups[0], new, GroupSource("layer.1", die)]), "prod")
"""


def test_a_publish_that_died_is_given_up_after_its_time(tmp_path: Path) -> None:
    registry, first = publish_first(tmp_path)
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=180, check=False).returncode == 9
    (publication,) = list_publications(registry)
    # A blob that was half written, as a killed process leaves it.
    (tmp_path / "blobs/aa").mkdir(exist_ok=True)
    (tmp_path / f"blobs/aa/.{'a' * 64}.{publication.identity}.0123456789abcdef.tmp").write_bytes(b"half")
    report = collect(registry, NOTHING)
    assert [row.publish for row in report.waiting] == [publication.job]
    (row,) = report.kept
    assert [(each.job, each.purpose) for each in row.holders] == [(publication.job, "base")]
    assert report.waiting[0].heartbeat_age is not None
    expected = collect(registry, LAST, dry_run=True, wait=True, watcher=VirtualTime().watcher())
    time = VirtualTime()
    report = collect(registry, LAST, wait=True, watcher=time.watcher())
    assert time.now >= 900
    assert [row.publish for row in expected.aborted] == [row.publish for row in report.aborted] == [publication.job]
    assert (expected.orphan_blobs, expected.orphan_size) == (report.orphan_blobs, report.orphan_size)
    assert report.orphan_blobs == 2 and report.waiting == ()
    check_registry(registry)
    assert locks.list_holders(registry, first) == []
    again = collect(registry, LAST)
    assert (again.aborted, again.orphan_blobs) == ((), 0)
    assert publish(registry, "mini", make_checkpoint(3), "prod").version == 2


def test_a_slow_publish_that_was_given_up_cannot_commit(tmp_path: Path) -> None:
    """And takes nothing along: its base may be gone."""
    registry, first = publish_first(tmp_path)
    reached, go_on = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def wait() -> bytes:
        if list_publications(registry):
            reached.set()
            assert go_on.wait(180)
        return make_checkpoint(5).groups[0].blob()

    def run() -> None:
        base = make_checkpoint(0)
        try:
            publish(registry, "mini", replace(base, groups=[*base.groups[:2], replace(base.groups[2], blob=wait)]))
        except StorageError as error:
            failures.append(error)

    publisher = threading.Thread(target=run)
    publisher.start()
    assert reached.wait(180)
    (publication,) = list_publications(registry)
    report = collect(registry, NOTHING, assume_dead=[publication.job])
    assert deleted(report) == [first] and [row.publish for row in report.aborted] == [publication.job]
    go_on.set()
    publisher.join()
    assert "garbage collection gave it up" in str(failures[0])
    assert collect(registry, NOTHING).blobs == 0
    check_registry(registry)
    assert find_files(f"{tmp_path}/locks") == {}


def test_a_committed_publish_is_finished_and_kept(tmp_path: Path) -> None:
    registry, first = publish_first(tmp_path)
    (version,) = registry.versions("mini")
    for path in (f"publish/{version.publish}.done", "models"):
        delete(f"{tmp_path}/{path}", recursive=True)
    assert [row.name for row in collect(registry, NOTHING, dry_run=True).finished] == ["mini"]
    assert registry.names() == []
    report = collect(registry, LAST)
    assert [row.publish for row in report.finished] == [f"publish-{version.publish}"]
    assert deleted(report) == [] and registry.resolve("mini@v1").snapshot == first
