"""Policies as users install them: a package with an entry point, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.fixtures.checkpoints import make_checkpoint

POLICY = """
import json, os
from daskinfer.errors import NotAllowed

def authorize(principal, action, resource, context):
    told = {"by": principal, "action": action, "resource": resource, "record": context["record"]}
    with open(os.environ["ASKED"], "a") as file:
        file.write(json.dumps(told) + "\\n")
    context["record"].clear()
    if action == os.environ.get("FORBIDDEN"):
        raise NotAllowed(f"{principal} may not {action} {resource}")

def crash(principal, action, resource, context):
    return {}[action]

def answer(principal, action, resource, context):
    return False
"""
WORK = """
import sys
from daskinfer.errors import NotAllowed
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
registry = Registry(sys.argv[1])
for work in (
    lambda: publish(registry, "mini", make_checkpoint(), "prod"),
    lambda: set_alias(registry, "mini", "next", "v1"),
    lambda: locks.take(registry, registry.resolve("mini@v1").snapshot, "job-1"),
):
    try:
        work()
    except NotAllowed as error:
        print(error.message, "|", error.hint)
"""


def install(folder: Path, *functions: str) -> Path:
    """Install a package with these functions as policies; return where."""
    (folder / "guards-1.0.dist-info").mkdir(parents=True)
    (folder / "guards.py").write_text(POLICY)
    (folder / "guards-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: guards\nVersion: 1.0\n")
    lines = [f"{number}-{function} = guards:{function}" for number, function in enumerate(functions)]
    (folder / "guards-1.0.dist-info/entry_points.txt").write_text("\n".join(["[daskinfer.policy]", *lines]))
    return folder


def work(tmp_path: Path, registry: Path, *functions: str, forbidden: str = "") -> list[str]:
    """Do one of everything in a process with these policies; return what it was refused."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(install(tmp_path / "site", *functions)),
        "ASKED": str(tmp_path / "asked"),
        "FORBIDDEN": forbidden,
    }
    command = [sys.executable, "-c", WORK, str(registry)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def records(registry: Path) -> list[str]:
    """Return whatever was written but blobs."""
    files = (str(path.relative_to(registry)) for path in registry.rglob("*") if path.is_file())
    return sorted(path for path in files if not path.startswith("blobs/"))


def test_every_decision_is_asked_for(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    assert work(tmp_path, registry, "authorize") == []
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    told = [(one["action"], one["resource"].split("/")[0], one["record"].get("op")) for one in asked]
    assert told == [
        ("publish", "publish", "begin"),
        ("lock", "locks", None),
        ("publish", "publish", "commit"),
        ("publish", "models", "publish"),
        ("lock", "locks", None),
        ("alias", "models", "set"),
        ("lock", "locks", None),
        ("alias", "models", "set"),
        ("lock", "locks", None),
    ]
    assert asked[-2]["resource"] == "models/mini/aliases/next"
    assert asked[-1]["record"]["job"] == "job-1"
    assert all("@" in one["by"] for one in asked)
    # The policy emptied the record that it was shown; what was written is whole.
    assert Registry(str(registry)).resolve("mini@next").version == 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("crash", "KeyError: 'publish'"),
        ("answer", "it returned False"),
        ("missing", "AttributeError: module 'guards' has no attribute 'missing'"),
    ],
)
def test_a_policy_that_does_not_work_forbids_everything(tmp_path: Path, function: str, reason: str) -> None:
    published = tmp_path / "registry"
    publish(Registry(str(published)), "mini", make_checkpoint(1), None)
    before = records(published)
    refused = work(tmp_path, published, "authorize", function)
    assert len(refused) == 3
    assert f"the policy '1-{function}' (guards:{function}) of guards does not work" in refused[0]
    assert reason in refused[0]
    assert refused[0].endswith("Correct or uninstall the package that it comes from.")
    assert records(published) == before


@pytest.mark.parametrize(("forbidden", "refusals"), [("publish", 1), ("lock", 3)])
def test_nothing_is_decided_that_is_forbidden(tmp_path: Path, forbidden: str, refusals: int) -> None:
    registry = tmp_path / "registry"
    publish(Registry(str(registry)), "mini", make_checkpoint(1), None)
    before = records(registry)
    assert len(work(tmp_path, registry, "authorize", forbidden=forbidden)) == refusals
    added = set(records(registry)) - set(before)
    assert not [path for path in added if path.split("/")[0] == ("publish" if forbidden == "publish" else "locks")]


def test_what_one_policy_forbids_the_others_cannot_allow(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first, second = work(tmp_path, registry, "authorize", "authorize", forbidden="alias")
    assert first.startswith("mini v1 was published, but prod was not moved: ")
    assert "may not alias models/mini/aliases/prod | So says the policy '0-authorize' (guards:authorize)" in first
    assert "may not alias models/mini/aliases/next" in second
    opened = Registry(str(registry))
    assert opened.aliases("mini") == {}
    assert [version.number for version in opened.versions("mini")] == [1]
    # Nobody who may move aliases finishes what was refused.
    assert publish(opened, "mini", make_checkpoint(1), None).version == 2
    assert opened.aliases("mini") == {}
