"""Every recipe in recipes/ runs, on tiny models and a few rows, with nothing changed but where it runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from daskinfer import api
from daskinfer.spec.loader import load_recipe
from daskinfer.testing.tinymodels import make_tiny_bert
from tests.e2e.conftest import read_output, run, write_rows

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)


def test_none_is_forgotten() -> None:
    assert {path.name for path in RECIPES.glob("*.yaml")} == {"embed_text.yaml", "classify_text.yaml"}


def test_embed_text(scheduler: str, tiny_model: Path) -> None:
    write_rows(Path("data/glosses.jsonl"), 30)
    api.publish("minilm", str(tiny_model), registry="work/registry", alias="prod")
    report = run(load_recipe(RECIPES / "embed_text.yaml"), scheduler)
    assert (report.rows_out, len(report.stages)) == (30, 2)
    assert read_output(Path("results/glosses.zarr")).keys() == {"embedding", "id", "text", "valid"}


def test_classify_text(scheduler: str) -> None:
    model = make_tiny_bert(Path("checkpoints/classifier"), architecture="BertForSequenceClassification")
    Path("data/texts.csv").write_text("id,text\na,the cat sat\nb,a dog ran\n")
    recipe = load_recipe(RECIPES / "classify_text.yaml", environment={"CHECKPOINT": f"./{model}"})
    assert run(recipe, scheduler).rows_out == 2
    table = ds.dataset("results/labels.parquet").to_table()
    assert table.column_names == ["row", "id", "label", "score", "scores"]
    assert table["id"].to_pylist() == ["a", "b"]
