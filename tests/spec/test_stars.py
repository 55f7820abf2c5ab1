from __future__ import annotations

from pathlib import Path

import pytest

from daskinfer.errors import RecipeError
from daskinfer.spec.loader import load_recipe


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "*.jsonl", "*"])
def test_a_glob_without_quotes_is_told_to_take_them(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"daskinfer: 1\nname: news\ninput:\n  url: {pattern}\n")
    with pytest.raises(RecipeError, match="put it in quotes"):
        load_recipe(str(path), ())
