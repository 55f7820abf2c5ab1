from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from daskinfer.errors import DaskinferError
from daskinfer.models.preprocessing.encoding import EncodedRows, Variants
from daskinfer.models.tasks.encode import Columns, encode_rows
from daskinfer.models.tasks.finish import find_not_finite
from daskinfer.spec.recipe.loader import load_recipe, override_recipe
from daskinfer.spec.recipe.schema import Recipe


def make_rows(count: int, variants: Variants | None = None) -> EncodedRows:
    return EncodedRows(np.zeros(count, np.int32), np.arange(count + 1, dtype=np.int64), variants=variants)


def test_rows_of_nan_and_infinity_are_named_with_their_column() -> None:
    vectors = np.zeros((4, 3), np.float32)
    vectors[1, 2], vectors[3] = np.nan, (np.inf, -np.inf, np.nan)
    found = find_not_finite(make_rows(4), {"embedding": vectors, "ids": np.zeros((4, 2), np.int64)})
    assert found == {
        1: "the model returned NaN in 1 of 3 numbers of embedding",
        3: "the model returned NaN and infinity in 3 of 3 numbers of embedding",
    }
    assert find_not_finite(make_rows(0), {"embedding": np.zeros((0, 3), np.float32)}) == {}


def test_items_count_for_their_row() -> None:
    variants = Variants(np.array([0, 0, 1], np.int32), np.zeros(3, np.int32), mask=0)
    found = find_not_finite(make_rows(2, variants), {"token_logprob": np.array([0, -np.inf, 0], np.float32)})
    assert found == {0: "the model returned infinity in 1 of 1 numbers of token_logprob"}


def test_the_policy_is_part_of_the_job_where_it_is_not_the_usual_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("{daskinfer: 1, name: x, model: {checkpoint: a@b}, input: {url: a}, output: {url: b.zarr}}")
    recipe = load_recipe(path)

    def changed(*overrides: str) -> Recipe:
        return override_recipe(recipe, overrides)

    assert changed("errors.nan=auto", "errors.max_rows=5").digest == recipe.digest
    assert len({recipe.digest, changed("errors.nan=keep").digest, changed("errors.nan=stop").digest}) == 3
    assert changed("model.options.max_pixels=50000000").digest == recipe.digest
    assert changed("model.options.max_characters=7").digest != recipe.digest


class Fragile:
    """An encoder that breaks on some rows, as code of a checkpoint's processor may."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def encode(self, columns: Columns) -> tuple[EncodedRows, dict[int, str]]:
        texts = columns["text"]
        if "bad" in texts:
            raise self.error("cannot")
        refused = {number: "odd" for number, text in enumerate(texts) if text == "odd"}
        return make_rows(len(texts) - len(refused)), refused


def test_a_row_that_cannot_be_prepared_costs_itself() -> None:
    for error in (MemoryError, RecursionError, ZeroDivisionError):
        encoded, refused = encode_rows(Fragile(error), {"text": ["a", "bad", "odd", "b", "bad"]})
        assert len(encoded.lengths) == 2
        assert refused == {
            1: f"preparing it raised {error.__name__}: cannot",
            2: "odd",
            4: f"preparing it raised {error.__name__}: cannot",
        }


def test_what_is_no_fault_of_the_rows_is_raised() -> None:
    with pytest.raises(MemoryError):
        encode_rows(Fragile(MemoryError), {"text": ["bad"] * 20})
    with pytest.raises(DaskinferError):
        encode_rows(Fragile(DaskinferError), {"text": ["bad", "a"]})
