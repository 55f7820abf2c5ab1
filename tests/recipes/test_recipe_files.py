"""Every shipped recipe is a valid one, and the schema editors read is the current one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daskinfer.spec.recipe.loader import load_recipe, recipe_schema

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_names_its_schema(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=./recipe.schema.json\n")
    load_recipe(str(path), ())


def test_schema_is_current() -> None:
    written = json.loads((ROOT / "recipes/recipe.schema.json").read_text())
    assert written == recipe_schema(), "run: daskinfer schema > recipes/recipe.schema.json"
