"""Every shipped recipe is a valid one, and the schema editors read is the current one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from daskinfer.spec.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_names_its_schema(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=./recipe.schema.json\n")
    Recipe.model_validate(yaml.safe_load(text))


def test_schema_is_current() -> None:
    written = json.loads((ROOT / "recipes/recipe.schema.json").read_text())
    current = Recipe.model_json_schema()
    assert written["properties"] == current["properties"]
    assert written["$defs"] == current["$defs"]
