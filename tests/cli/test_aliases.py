from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daskinfer.cli import main
from daskinfer.testing.fixtures.checkpoints import make_registry


@pytest.fixture
def registry(folder: Path) -> Path:
    make_registry(folder / "work/registry")
    return folder


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["checkpoint", *arguments], prog_name="daskinfer")


def test_moves_and_their_history(registry: Path) -> None:
    (registry / "gate.json").write_text('{"drift": 0}')
    assert call("alias", "mini", "prod", "v1", "--gate", "gate.json", "--reason", "safer").exit_code == 0
    assert "is back at mini v3" in call("rollback", "mini", "prod", "--reason", "slow").stdout
    refused = call("alias", "mini", "prod", "v2", "--expect", "4")
    assert refused.exit_code == 1
    assert "was moved to v3 by" in refused.stderr and "checkpoint history mini prod" in refused.stderr
    assert call("alias", "mini", "prod", "--unset").stdout == "mini@prod points nowhere now (move 5)\n"
    lines = call("history", "mini", "prod").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["MOVE", "5", "4", "3", "2", "1", "0"]
    assert "took back move 3, to that of move 2; slow" in lines[2]
    assert "safer; gate report sha256:" in lines[3]
    moves = json.loads(call("history", "mini", "prod", "--json").stdout)["moves"]
    assert [move["version"] for move in moves] == [1, 2, 3, 1, 3, None]
    assert "mini has no alias 'prd'" in call("history", "mini", "prd").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alias", "mini", "prod"), "or --unset"),
        (("alias", "mini", "prod", "v1", "--unset"), "or --unset"),
        (("alias", "mini", "prod", "v1", "--gate", "none.json"), "cannot read none.json"),
        (("alias", "mini", "prod", "v1", "--gate", "list.json"), "holds no JSON object"),
        (("alias", "mini", "prod", "v1", "--gate", "recipe.yaml"), "is not JSON"),
        (("yank", "mini", "prod"), "'prod' is not a version"),
        (("rollback", "mini", "prod", "--to", "7"), "has no move 7"),
    ],
)
def test_wrong_arguments_are_refused(registry: Path, arguments: tuple[str, ...], message: str) -> None:
    (registry / "list.json").write_text("[]")
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_yanked_versions_are_marked(registry: Path) -> None:
    assert call("yank", "mini", "v3", "--reason", "bad [labels]").stdout.endswith("is yanked\n")
    assert "v2 " in call("list").stdout and "3 (v3 yanked)" in call("list").stdout
    shown = call("show", "mini@prod").stdout
    assert ": bad [labels]" in shown and "(yanked)" in shown
    assert json.loads(call("show", "mini@v3", "--json").stdout)["versions"][2]["yanked"]["reason"] == "bad [labels]"
    assert call("yank", "mini", "v3", "--undo", "--json").stdout.startswith('{"number":3')
    assert "yanked" not in call("list").stdout
