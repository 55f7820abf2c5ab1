"""A recipe's digest, by which its jobs are found again."""

from __future__ import annotations

from daskinfer.ids import digest_of
from daskinfer.spec.recipe.schema import OPERATIONAL, Recipe


def test_keys_that_came_later_leave_the_digests_of_recipes_that_do_not_use_them() -> None:
    told = {"daskinfer": 1, "name": "n", "model": {"checkpoint": "m@prod"}, "output": {"url": "out.zarr"}}
    recipe = Recipe.model_validate({**told, "input": {"url": "a.jsonl"}})
    plain = recipe.model_dump(mode="json", exclude=OPERATIONAL)
    del plain["errors"], plain["model"]["options"]["max_characters"], plain["model"]["options"]["max_pixels"]
    plain["input"] = {"url": "a.jsonl", "format": "auto", "columns": {}, "partition_rows": 2048}
    assert recipe.digest == digest_of(plain)
    for more in ({"url": ["a.jsonl"]}, {"encoding": "cp1252"}, {"csv": {"quote": None}}, {"types": {"n": "int64"}}):
        assert Recipe.model_validate({**told, "input": {"url": "a.jsonl"} | more}).digest != recipe.digest
