from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daskinfer.cli import main
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publications import publish_log
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.fixtures.checkpoints import make_checkpoint


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["checkpoint", *arguments], prog_name="daskinfer")


@pytest.fixture
def registry(folder: Path) -> Registry:
    """Three versions; the first is held, the third is prod."""
    registry = Registry(str(folder / "work/registry"))
    for seed in range(3):
        publish(registry, "mini", make_checkpoint(seed), "prod")
    locks.take(registry, registry.resolve("mini@v1").snapshot, "news-1")
    return registry


def test_locks_are_listed(registry: Registry) -> None:
    heads, row = (re.split(r"  +", line.strip()) for line in call("locks").stdout.splitlines())
    assert heads == ["VERSION", "SNAPSHOT", "HELD BY", "FOR", "USER", "SINCE", "HEARTBEAT"]
    assert (row[0], row[2], row[3]) == ("mini v1", "news-1", "run")
    assert row[6].endswith(" ago")
    found = json.loads(call("locks", "mini@v1", "--json").stdout)
    assert [lock["job"] for lock in found["locks"]] == ["news-1"]
    assert call("locks", "mini@prod").stdout == "no job and no alias holds a version of mini@prod\n"
    assert call("locks", "mini@v9").exit_code == 2
    assert call("locks", "--registry", "none").stdout == "no job and no alias holds a version of none\n"


def test_gc_says_what_goes_and_why_the_rest_stays(registry: Registry) -> None:
    begin = {"op": "begin", "name": "mini", "by": "ann@host", "at": "2026-11-25T00:00:00+00:00"}
    publish_log(registry, "0123abcd").append(begin)
    result = call("gc", "--keep-versions", "1", "--keep-days", "0", "--dry-run")
    lines = [re.sub(r"[0-9a-f]{12}", "#", line) for line in result.stdout.splitlines()]
    assert lines[:2] == [
        "would delete 1 version: 4 blobs, 2.1 KB",
        "  would go   mini v2 (sha256:#): 4 blobs, 2.1 KB",
    ]
    assert re.fullmatch(
        r"  kept       mini v1 \(sha256:#\): held by news-1 \(run\), \S+@\S+, since \S+, heartbeat .* ago", lines[2]
    )
    assert lines[3:] == [
        "  kept       mini v3 (sha256:#): among the last 1 of mini; alias mini@prod",
        "  under way  publish-0123abcd of mini, by ann@host since 2026-11-25T00:00:00+00:00",
    ]
    assert "--wait finds out" in result.stderr
    assert registry.resolve("mini@v2").version == 2 and registry.life(registry.resolve("mini@v2").snapshot) == "live"

    dead = ("--assume-dead", "news-1", "--assume-dead", "publish-0123abcd")
    result = call("gc", "--keep-versions", "1", "--keep-days", "0", *dead)
    lines = [re.sub(r"[0-9a-f]{12}", "#", line) for line in result.stdout.splitlines()]
    assert lines[0] == "deleted 2 versions: 8 blobs, 4.2 KB"
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["deleted", "mini", "v1"],
        ["deleted", "mini", "v2"],
        ["kept", "mini", "v3"],
    ]
    assert lines[4].startswith("  given up   publish-0123abcd of mini")
    assert result.stderr == ""


def test_gc_in_numbers_and_refusals(registry: Registry) -> None:
    found = json.loads(call("gc", "--keep-versions", "0", "--keep-days", "0", "--json").stdout)
    assert [row["versions"] for row in found["deleted"]] == [["mini v2"]]
    assert [(row["reasons"], len(row["holders"])) for row in found["kept"]] == [([], 1), (["alias mini@prod"], 0)]
    refused = call("gc", "--assume-dead", "news-2")
    assert refused.exit_code == 2 and "hint: Did you mean news-1?" in refused.stderr
    for wrong in (("--keep-versions", "-1"), ("--keep-days", "many"), ("--assume-dead",)):
        assert call("gc", *wrong).exit_code == 2
