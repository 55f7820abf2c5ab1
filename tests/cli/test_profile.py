"""`profile`, on a real checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daskinfer.cli import main
from daskinfer.spec.measured import CheckpointProfile
from daskinfer.testing.models.tinymodels import make_tiny_bert


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["profile", *arguments], prog_name="daskinfer")
    assert "a bug" not in result.stderr
    return result


@pytest.fixture
def bert(folder: Path) -> str:
    make_tiny_bert(folder / "tiny", layers=3)
    return "tiny"


def columns(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_every_layer_has_a_line(bert: str) -> None:
    result = call(bert, "--no-measure", "--max-length", "32")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    head, *lines = result.stdout.splitlines()
    assert re.fullmatch(r"tiny v1 sha256:\w{64}", head)
    assert [columns(line) for line in lines] == [
        ["model", "BertModel, task embed, float32"],
        ["cuts", "before every layer but the first"],
        ["microbatches", "rows of any length together"],
        ["counted", "in a microbatch of 128 rows of 32 tokens, for one token"],
        ["LAYER", "PARAMETERS", "FLOP/TOKEN", "CROSSES", "BYTES/TOKEN"],
        ["encoder.layer.0", "55.3 KB", "20.5 k", "-", "-"],
        ["encoder.layer.1", "34.2 KB", "20.5 k", "1 tensor", "128 B"],
        ["encoder.layer.2", "34.2 KB", "20.5 k", "1 tensor", "128 B"],
        ["all", "124 KB", "61.4 k"],
    ]


def test_times_are_shown_and_stored(bert: str) -> None:
    lines = call(bert, "--threads", "1").stdout.splitlines()
    assert columns(lines[6])[5:] == ["256 TOKENS", "1,024 TOKENS", "4,096 TOKENS", "GFLOP/S", "TIME BY FIT"]
    for line in lines[7:10]:
        assert re.fullmatch(r"[\d.]+ m?s", columns(line)[5])
    assert "(now) on " in lines[5]
    again = call(bert, "--threads", "1").stdout.splitlines()
    assert "stored; --fresh measures again" in again[5]
    assert again[7:] == lines[7:]
    found = CheckpointProfile.model_validate_json(call("tiny@v1", "--threads", "1", "--json").stdout)
    assert found.stored
    assert found.measured is not None
    assert [layer.name for layer in found.layers] == [layer.name for layer in found.measured.layers]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch@v1",), "nosuch"),
        (("tiny", "--task", "forward"), "needs the model's inputs by name"),
        (("tiny", "--task", "forward", "--input", "x=float32:ax3"), "not NAME=dtype:shape"),
        (("tiny", "--task", "forward", "--input", "x=complex64:3"), "types are float64"),
        (("tiny", "--task", "forward", "--input", "pixel_values=float32:3x4"), "does not take pixel_values"),
        (("tiny", "--task", "score"), "predicts no tokens"),
        (("tiny", "--max-length", "0"), "--max-length"),
    ],
)
def test_mistakes_are_2(bert: str, arguments: tuple[str, ...], message: str) -> None:
    result = call(*arguments, "--no-measure")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_is_json_too(folder: Path) -> None:
    result = call("nosuch@v1", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == 2


def test_a_row_of_arrays_is_named_on_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = CliRunner().invoke(
        main, ["checkpoint", "publish", "own", "--entry", "daskinfer.testing.models.ownmodels:make_own"]
    )
    assert published.exit_code == 0, published.stderr
    result = call("own@v1", "--task", "forward", "--input", "features=float32:8", "--no-measure")
    assert re.search(r"counted +in a microbatch of 16 rows, for one row", result.stdout), result.stdout
    assert re.search(r"body\.1 +4\.4 KB +2\.0 k +2 tensors +128 B", result.stdout), result.stdout
