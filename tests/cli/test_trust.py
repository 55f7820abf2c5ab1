"""Rights, audit and signatures as a user types them, on a real registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daskinfer.cli import main
from daskinfer.storage.registry.access.roles import ROLES, make_bucket_policy, make_role_policy
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, be_full
from daskinfer.testing.fixtures.checkpoints import make_checkpoint

S3 = ("--registry", "s3://models/registry")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="daskinfer")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASKINFER_REGISTRY", str(tmp_path / "registry"))
    registry = Registry(str(tmp_path / "registry"))
    publish(registry, "mini", make_checkpoint(), "prod")
    return registry


def test_roles() -> None:
    shown = call("checkpoint", "roles").stdout
    assert all(f"{name}  {role.purpose}\n" in shown for name, role in ROLES.items())
    assert "  deletes   blobs/* manifests/* publish/*.hb locks/*\n" in shown
    assert [row["name"] for row in json.loads(call("checkpoint", "roles", "--json").stdout)["roles"]] == list(ROLES)
    for role in ROLES:
        assert json.loads(call("checkpoint", "roles", role, *S3).stdout) == make_role_policy(role, S3[1])
    document = call("checkpoint", "roles", "--bucket-policy", *S3, "--json").stdout
    assert json.loads(document) == make_bucket_policy(S3[1])


def test_roles_that_cannot_be(registry: Registry) -> None:
    local = call("checkpoint", "roles", "runner")
    assert local.exit_code == 2 and "is not on S3" in local.stderr
    assert call("checkpoint", "roles", "nobody", *S3).exit_code == 2
    assert call("checkpoint", "roles", "runner", "--bucket-policy", *S3).exit_code == 2


def test_audit_tells_and_filters(registry: Registry) -> None:
    lines = call("audit").stdout.splitlines()
    assert len(lines) == 7 and lines[-1] == "6 events verified, 0 broken"
    assert "  alias set        models/mini/aliases/prod/000000000000.json  sha256:" in lines[-2]
    found = json.loads(call("audit", "--action", "alias", "--json").stdout)
    assert [event["resource"] for event in found["events"]] == ["models/mini/aliases/prod"]
    user = found["events"][0]["by"].partition("@")[0]
    assert call("audit", "--by", user).stdout.splitlines()[-1] == "6 events verified, 0 broken"
    for nothing in (("--by", "nobody"), ("--since", "2999-01-01")):
        assert call("audit", *nothing).stdout == "6 events verified, 0 shown, 0 broken\n"
    assert call("audit", "--since", "2020-01-01T00:00+02:00").stdout.splitlines() == lines
    assert call("audit", "--since", "yesterday").exit_code == 2
    assert call("audit", "--registry", "none").stdout == "0 events verified, 0 broken\n"


def test_audit_ends_with_1_where_something_was_changed(registry: Registry, tmp_path: Path) -> None:
    move = tmp_path / "registry/models/mini/aliases/prod/000000000000.json"
    move.write_bytes(move.read_bytes().replace(b'"set"', b'"SET"'))
    told = call("audit", "--action", "lock")
    assert told.exit_code == 1
    assert "broken: models/mini/aliases/prod/000000000000.json: the record was changed" in told.stdout
    assert "error: 1 finding(s) show that registry" in told.stderr
    (line,) = call("audit", "--json").stdout.splitlines()
    assert json.loads(line)["code"] == 1
    assert [finding["severity"] for finding in json.loads(line)["findings"]] == ["broken"]


def test_a_missing_event_is_a_warning_on_stderr(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKINFER_REGISTRY", url := "memory://cli-trust")
    publish(Registry(url), "mini", make_checkpoint(), "prod")
    with FaultyFS(url, "pipe_file", be_full, after=4):
        told = call("checkpoint", "alias", "mini", "prod", "v1")
    assert told.exit_code == 0
    assert told.stdout.startswith("mini@prod is now mini v1")
    assert told.stderr == (
        "warning: alias of models/mini/aliases/prod is done, but its audit event is missing: "
        f"no space left on {url}/audit/{told.stderr.rpartition('/audit/')[2]}"
    )


def test_signing(registry: Registry, tmp_path: Path) -> None:
    made = call("checkpoint", "keygen", "release.key")
    assert made.exit_code == 0 and "release.key.pub is the public one: sha256:" in made.stdout
    assert call("checkpoint", "keygen", "release.key").exit_code == 2
    pair = json.loads(call("checkpoint", "keygen", "other.key", "--json").stdout)
    assert (pair["private"], pair["public"]) == ("other.key", "other.key.pub")

    assert call("checkpoint", "signatures", "mini@prod").stdout == "mini@prod is not signed\n"
    unsigned = call("checkpoint", "signatures", "mini@prod", "--key", "release.key.pub")
    assert unsigned.exit_code == 2 and "is not signed by release.key.pub" in unsigned.stderr
    assert call("checkpoint", "sign", "mini@prod", "--key", "release.key").stdout.endswith("  valid\n")
    assert call("checkpoint", "signatures", "mini@prod").stdout.endswith("  not verified\n")
    assert call("checkpoint", "sign", "mini@v1", "--key", "other.key").exit_code == 0
    lines = call("checkpoint", "signatures", "mini@v1", "--key", "other.key.pub").stdout.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["of another key", "valid"]
    told = json.loads(call("checkpoint", "signatures", "mini", "--key", "release.key.pub", "--json").stdout)
    assert [row["valid"] for row in told["signatures"]] == [True, False]
    assert json.loads(call("checkpoint", "sign", "mini", "--key", "release.key", "--json").stdout)["valid"] is True
    assert call("checkpoint", "sign", "mini@prod", "--key", "nowhere").exit_code == 2
    assert call("checkpoint", "sign", "nobody@prod", "--key", "release.key").exit_code == 2
    assert call("audit").stdout.splitlines()[-1] == "8 events verified, 0 broken"
