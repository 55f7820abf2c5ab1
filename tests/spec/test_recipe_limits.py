"""What a recipe may expand to, and what it may name once."""

import os
import tracemalloc
from pathlib import Path

import pytest

from daskinfer.errors import RecipeError
from daskinfer.spec.recipe.loader import load_recipe

BOMB = "\n".join(
    ["x0: &a0 [1,1,1,1,1,1,1,1,1,1]", *(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "it expands to more than 20,000 values"),
        (f"x: &a {'y' * 9000}\nz: [{', '.join(['*a'] * 900)}]", "or too much text"),
        (f"x: [{'1,' * 60_000}]", "it has more than 20,000 values"),
        (f"input: {{partition_rows: 0x{'f' * 900_000}}}", "is not a valid int"),
        ("pipeline: {stages: 1000000000}", "at most 10,000"),
        ("cluster: {local: {workers: 1000000000}}", "at most 4,096"),
    ],
    ids=["values", "text", "list", "digits", "stages", "workers"],
)
def test_what_expands_without_end_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    tracemalloc.start()
    with pytest.raises(RecipeError, match=said):
        load_recipe(path)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.timeout(60)
def test_what_never_ends_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        with pytest.raises(RecipeError, match=f"{name}: is a pipe, device or socket"):
            load_recipe(tmp_path / name)


def test_a_column_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: {url: out.jsonl, keep: [id, x, id]}")
    with pytest.raises(RecipeError, match="'id' more than once: name every column once"):
        load_recipe(path)
