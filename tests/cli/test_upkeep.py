from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daskinfer.cli import main
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.checkpoints import make_registry


@pytest.fixture
def registry(folder: Path) -> Registry:
    return make_registry(folder / "work/registry")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["checkpoint", *arguments], prog_name="daskinfer")


def test_sync_copies_and_says_what(registry: Registry, folder: Path) -> None:
    foreseen = call("sync", "work/registry", "there", "--dry-run")
    assert (foreseen.exit_code, (folder / "there").exists()) == (0, False)
    assert foreseen.stdout.count("would be copied  mini v") == 3 and "dry run" in foreseen.stdout
    done = call("sync", "work/registry", "there")
    assert (done.exit_code, done.stdout.count("\ncopied  mini v")) == (0, 2)
    assert "moved  mini@prod got its newer moves" in done.stdout and "\nin sync" in done.stdout
    found = json.loads(call("sync", "work/registry", "there", "--json").stdout)
    assert [row["outcome"] for row in found["versions"]] == ["there"] * 3
    assert (
        "0 versions (0 B) copied, 3 were there, 1 of 1 alias did not move"
        in call("sync", "there", "work/registry").stdout
    )


def test_sync_stops_at_an_alias_that_moved_in_both(registry: Registry) -> None:
    call("sync", "work/registry", "there")
    call("alias", "mini", "prod", "v1")
    call("alias", "mini", "prod", "v2", "--registry", "there")
    refused = call("sync", "work/registry", "there")
    assert refused.exit_code == 1
    assert "conflict  mini@prod was moved in both" in refused.stdout and "\nnot in sync" in refused.stdout
    assert "--resolve mini@prod=source" in refused.stdout
    assert call("sync", "work/registry", "there", "--resolve", "mini@prod=source").exit_code == 0
    assert "two histories made one" in call("history", "mini", "prod", "--registry", "there").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("work/registry",), "Missing argument 'B'"),
        (("work/registry", "work/registry"), "cannot be synced with itself"),
        (("none", "there"), "holds no checkpoints"),
        (("work/registry", "there", "mini@v9"), "mini has no version v9"),
        (("work/registry", "there", "--resolve", "prod=source"), "is not NAME@ALIAS=source"),
        (("work/registry", "there", "--resolve", "mini@prod=mine"), "is not NAME@ALIAS=source"),
        (("work/registry", "there", "--resolve", "mini@old=source"), "nothing is synced as mini@old"),
    ],
)
def test_wrong_syncs_are_refused(registry: Registry, arguments: tuple[str, ...], message: str) -> None:
    result = call("sync", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_verify_tells_damage_by_its_exit_code(registry: Registry) -> None:
    assert call("verify").stdout.startswith("whole  ")
    path = Path(registry.url, str(registry.manifest(registry.resolve("mini@v1").snapshot).groups[0].blob))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert call("verify", "mini@v1").exit_code == 0  # of the right length
    result = call("verify", "--deep")
    assert result.exit_code == 1 and f"where  {path}" in result.stdout
    assert call("verify", "mini@prod", "--deep").exit_code == 0
    assert json.loads(call("verify", "mini@v1", "--deep", "--json").stdout)["findings"][0]["damaged"] is True
    assert call("verify", "mini@v9").exit_code == 2


def test_diff_shows_what_changed(registry: Registry) -> None:
    lines = call("diff", "mini@v1", "mini@v2").stdout.splitlines()
    assert lines[0].startswith("mini v1 sha256:") and "files    1 the same; changed: vocab.txt" in lines[1]
    assert sum("128 of 128" in line for line in lines) == 3
    assert json.loads(call("diff", "mini@v1", "mini@v1", "--json").stdout)["read"] == 0
    assert call("diff", "mini@v1", "mini@v9").exit_code == 2
