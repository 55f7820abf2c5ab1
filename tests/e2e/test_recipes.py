"""Every recipe in recipes/ runs, on tiny models and a few rows, with nothing changed but where it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import transformers
import zarr
from distributed import Client
from PIL import Image

from daskinfer import api
from daskinfer.spec.loader import load_recipe
from daskinfer.testing.tinymodels import make_tiny, make_tiny_bert
from tests.e2e.conftest import read_output, run, write_rows

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)


def test_none_is_forgotten() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in RECIPES.glob("*.yaml")} <= tested


def test_embed_text(scheduler: str, tiny_model: Path) -> None:
    write_rows(Path("data/glosses.jsonl"), 30)
    api.publish("minilm", str(tiny_model), registry="work/registry", alias="prod")
    report = run(load_recipe(RECIPES / "embed_text.yaml"), scheduler)
    assert (report.rows_out, len(report.stages)) == (30, 2)
    assert read_output(Path("results/glosses.zarr")).keys() == {"embedding", "id", "text", "valid"}


def test_classify_text(scheduler: str) -> None:
    model = make_tiny_bert(Path("checkpoints/classifier"), architecture="BertForSequenceClassification")
    Path("data/texts.csv").write_text("a,id,text\n01,a,the cat sat\n02,b,a dog ran\n")
    kept = ("output.keep=[text, id, a]",)
    recipe = load_recipe(RECIPES / "classify_text.yaml", kept, environment={"CHECKPOINT": f"./{model}"})
    assert run(recipe, scheduler).rows_out == 2
    table = ds.dataset("results/labels.parquet").to_table()
    assert table.column_names == ["row", "text", "id", "a", "label", "score", "scores"]
    assert table["id"].to_pylist() == ["a", "b"]


def test_score_text(scheduler: str) -> None:
    model = make_tiny(Path("checkpoints/language-model"), "LlamaForCausalLM")
    write_rows(Path("data/glosses.jsonl"), 30)
    recipe = load_recipe(RECIPES / "score_text.yaml", environment={"CHECKPOINT": f"./{model}"})
    report = run(recipe, scheduler)
    assert (report.rows_out, len(report.stages)) == (30, 2)
    table = ds.dataset("results/scores.parquet").to_table()
    assert table.column_names == ["row", "id", "logprob", "num_tokens", "perplexity"]


def test_classify_images(scheduler: str) -> None:
    size: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(**size, num_hidden_layers=4, image_size=32, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained("checkpoints/vit")
    processor: Any = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained("checkpoints/vit")
    Path("data/photos").mkdir()
    for number in range(12):
        Image.new("RGB", (50, 40), (20 * number, 0, 90)).save(f"data/photos/{number:02}.jpg")
    report = run(load_recipe(RECIPES / "classify_images.yaml", environment={}), scheduler)
    assert (report.rows_out, len(report.stages)) == (12, 2)
    table = ds.dataset("results/photos.parquet").to_table()
    assert table.column_names == ["row", "path", "label", "score", "scores"]


def test_forward_arrays(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    with Client(scheduler) as client:
        client.run(lambda: sys.path.append(str(RECIPES)))
    values = np.random.default_rng(0).standard_normal((40, 8), dtype=np.float32)
    zarr.open_group("data/features.zarr", mode="w").create_array("values", data=values)
    api.publish("tagger", registry="work/registry", entry="tagger:build", alias="prod")
    report = run(load_recipe(RECIPES / "forward_arrays.yaml"), scheduler)
    assert (report.rows_out, len(report.stages)) == (40, 2)
    output = read_output(Path("results/tags.zarr"))
    assert output["scores"].shape == (40, 3)
    assert output["norm"].shape == (40,)
