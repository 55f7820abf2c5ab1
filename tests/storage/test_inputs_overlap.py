"""A job never reads what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import InputError
from daskinfer.spec.recipe import Input
from daskinfer.storage.filesystem import replace_bytes
from daskinfer.storage.inputs.overlap import refuse_overlap
from daskinfer.storage.inputs.patterns import Pattern
from daskinfer.storage.urls import join_url


def overlaps(url: str | tuple[str, ...], place: str, **more: Any) -> bool:
    try:
        refuse_overlap(Input(url=url, **more), {"output.url": place})
    except InputError:
        return True
    return False


@pytest.mark.parametrize(
    ("url", "place", "expected"),
    [
        ("data/**/*.jsonl", "data/out.jsonl", True),
        ("data/**", "data/out.zarr", True),
        ("data/**", "data/deep/er/out.zarr", True),
        ("**/*.jsonl", "results/out.jsonl", True),
        ("data/*/*.jsonl", "data/out.jsonl", True),
        ("data/*/*.jsonl", "data/.hidden.jsonl", True),
        ("data/*/*.jsonl", "data/_out", True),
        ("data/o*/*.jsonl", "data/out.jsonl", True),
        ("data/x*/*.jsonl", "data/out.jsonl", False),
        ("data/*/*/*.jsonl", "data/out.jsonl", True),
        ("data/*.jsonl", "data/out.jsonl", False),  # a folder is no file
        ("data", "data/out.jsonl", False),
        ("data", "data", True),
        ("data/*.jsonl", "data", True),
        ("data/**/*.jsonl", "results/out.jsonl", False),
        ("data/**/*.jpg", "data/out.parquet", False),  # no part of an output ends so
        ("data/**/*.csv", "data/out.jsonl", False),
        ("data/in.jsonl", "data/in.jsonl", True),
        ("out/in.jsonl", "out", True),
        ("out/in/*.jsonl", "out", True),
        ("first/part-*.jsonl", "second", False),
        ("group.zarr", "group.zarr/out.zarr", True),
        ("group.zarr", "other.zarr", False),
    ],
)
def test_where_an_output_may_be(url: str, place: str, expected: bool, tmp_path: Path) -> None:
    for name in ("data/in.jsonl", "out/in.jsonl", "out/in/a.jsonl", "first/part-0.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "group.zarr").mkdir()
    assert overlaps(f"{tmp_path}/{url}", f"{tmp_path}/{place}") == expected
    # Whether or not an earlier run has left something there.
    (tmp_path / place).mkdir(parents=True, exist_ok=True) if not (tmp_path / place).exists() else None
    assert overlaps(f"{tmp_path}/{url}", f"{tmp_path}/{place}") == expected


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a.jsonl").write_text("{}\n")
    results = f"{tmp_path}/results"
    assert not overlaps(f"{tmp_path}/data/**", results)
    (tmp_path / "data/sub/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/sub/link").symlink_to(tmp_path / "results")
    assert overlaps(f"{tmp_path}/data/**", results)
    assert overlaps(f"{tmp_path}/data/**", f"{results}/out")
    assert overlaps(f"{tmp_path}/data/*/*/*.jsonl", results)
    assert not overlaps(f"{tmp_path}/data/*/*.jsonl", f"{results}/out")
    assert overlaps(f"{tmp_path}/data/sub/link", results)
    (tmp_path / "other").symlink_to(tmp_path / "data")
    assert overlaps(f"{tmp_path}/data/**", f"{tmp_path}/other/out.jsonl")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/one.jsonl").symlink_to(tmp_path / "results/a.jsonl")
    assert overlaps(f"{tmp_path}/flat", results)
    assert overlaps(f"{tmp_path}/flat/*.jsonl", results)


def test_lists_and_images(tmp_path: Path) -> None:
    out = f"{tmp_path}/data/out.parquet"
    assert overlaps((f"{tmp_path}/a.jsonl", f"{tmp_path}/data/**"), out)
    assert not overlaps(f"{tmp_path}/data/**", out, format="images")


def test_object_stores(any_store: str) -> None:
    replace_bytes(join_url(any_store, "data/in.jsonl"), b"{}\n")
    for url, place, expected in (
        ("data/**/*.jsonl", "data/out.jsonl", True),
        ("data/*/*.jsonl", "data/out.jsonl", True),
        ("data/*.jsonl", "data/out.jsonl", False),
        ("data", "data/out.jsonl", False),
        ("data", "data", True),
        ("data/**", "results", False),
    ):
        assert overlaps(join_url(any_store, url), join_url(any_store, place)) == expected
    assert not overlaps("data/**", join_url(any_store, "data/out"))


def test_a_pattern_matches_whole_names() -> None:
    assert Pattern("r", ("**", "*.c")).matches(["a", "b.c"])
    assert Pattern("r", ("**", "*.c")).matches(["b.c"])
    assert not Pattern("r", ("*.c",)).matches(["a", "b.c"])
    assert Pattern("/a[1]", ("*",)).as_glob() == "/a[[]1]/*"
