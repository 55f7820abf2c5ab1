"""What Python code may give as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import RecipeError
from daskinfer.spec.recipe.loader import load_recipe, read_recipe
from daskinfer.spec.recipe.schema import Recipe

TEXT = """daskinfer: 1
name: demo
model: {checkpoint: minilm@prod, options: {max_length: 64}}
input: {url: "a.jsonl"}
output: {url: "${PLACE}/a.zarr", keep: [id, "1e3", "yes"]}
"""
KEYS: dict[str, Any] = {
    "daskinfer": 1,
    "name": "demo",
    "model": {"checkpoint": "minilm@prod", "options": {"max_length": 64}},
    "input": {"url": Path("a.jsonl")},
    "output": {"url": "${PLACE}/a.zarr", "keep": ("id", "1e3", "yes")},
}


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "results")


def test_a_path_a_text_a_mapping_and_a_recipe_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    wanted = load_recipe(path)
    assert wanted.output.url == "results/a.zarr" and wanted.output.keep == ("id", "1e3", "yes")
    for source in (path, str(path), TEXT, KEYS, wanted):
        assert read_recipe(source) == wanted
        assert read_recipe(source, ["name=other"]).name == "other"


def test_a_recipe_that_is_given_stays_as_it_is() -> None:
    read_recipe(KEYS, ["model.options.max_length=8"])
    assert KEYS["model"]["options"] == {"max_length": 64} and KEYS["input"]["url"] == Path("a.jsonl")


@pytest.mark.parametrize(
    "source, told",
    [
        (KEYS | {"modle": 1}, r"the recipe:\d+:3: modle: unknown key. Did you mean 'model'\?"),
        (KEYS | {"input": {"url": {"a"}}}, "the recipe: input.url: set cannot be a value of a recipe"),
        (KEYS | {"input": {"url": ["a", 3.5]}}, r"the recipe:\d+:\d+: input.url"),
        ({}, "problems in the recipe"),
        (TEXT + "name: [", "the recipe:6:"),
        ("nothing.yaml", "nothing.yaml: no such file"),
        (7, "expected a recipe, got int"),
        (Recipe, "expected a recipe, got ModelMetaclass"),
    ],
)
def test_what_is_no_recipe_is_told_with_its_place(source: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read_recipe(source)
