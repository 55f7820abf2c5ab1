"""Any name that a file system allows is read, or refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskinfer.errors import InputError, UsageError
from daskinfer.ids import make_nonce
from daskinfer.spec.recipe.schema import Input
from daskinfer.storage.inputs.files import _tag, find_input
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.objects.filesystem import exists, list_names, replace_bytes
from daskinfer.storage.objects.urls import absolute_url, join_url

NAMES = [
    "std::vector.jsonl",
    "a::s3:.jsonl",
    "~lock.jsonl",
    "~nosuchuser",
    "a#b?c.jsonl",
    "100%25 sure.jsonl",
    "new\nline.jsonl",
    " spaces .jsonl",
    'it\'s "quoted".jsonl',
    "part[1].jsonl",
    "[ab]*?.jsonl",
    "{a,b}.jsonl",
    "back\\slash.jsonl",
    "\x1b[31mred.jsonl",
    "-n",
    "http:.jsonl",
    "caf\u00e9 \u4e2d.jsonl",
    "x" * 249 + ".jsonl",
]


def read_texts(url: str) -> list[str]:
    table = index_input(Input(url=url, format="jsonl"), {"text": "text"})
    return [
        text
        for partition in table.partitions
        for text in read_partition(partition_source(table, partition.number)).values("text")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('{"text": "one"}\n')
    for url in (str(tmp_path / name), f"./{name}", name, f"{tmp_path}/*", str(tmp_path)):
        assert read_texts(url) == ["one"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_written_and_globbed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    replace_bytes(join_url(absolute_url("sub"), "a.jsonl"), b'{"text": "one"}\n')
    assert list_names("sub") == ["a.jsonl"]
    assert exists(f"{tmp_path}/{name}/sub/a.jsonl")
    assert (
        read_texts("sub/*.jsonl") == read_texts("**/*.jsonl") == read_texts(f"{tmp_path}/{name}/*/a.jsonl") == ["one"]
    )


def test_a_home_folder_is_one_that_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_url("~") == "/home/someone"
    assert absolute_url("~/~x") == "/home/someone/~x"
    assert absolute_url("~nosuchuser/x") == f"{tmp_path}/~nosuchuser/x"
    assert absolute_url("./~/x") == f"{tmp_path}/~/x"


def test_dots_after_a_link_leave_the_folder_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "far/inner").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far/inner")
    assert absolute_url(f"{tmp_path}/near/../x") == os.path.realpath(tmp_path / "far/x")
    assert absolute_url(f"/{tmp_path}/far//./../x") == f"{tmp_path}/x"


@pytest.mark.parametrize("url", ["file:///data/a%20b.jsonl", "a\0b", "caf\udce9.jsonl"])
def test_what_has_two_meanings_or_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        absolute_url(url)


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match="not valid UTF-8"):
        absolute_url("x")


def test_a_file_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("{}\n")
    for url in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        with pytest.raises(InputError, match=r"caf\\udce9"):
            find_input(Input(url=url))


def test_a_name_that_is_too_long_is_not_there(tmp_path: Path) -> None:
    for name in ("x" * 300, "*" + "x" * 300):
        with pytest.raises(InputError, match="nothing matches"):
            find_input(Input(url=f"{tmp_path}/{name}"))


def test_names_that_look_like_patterns_are_names_where_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "data [1]").mkdir()
    (tmp_path / "data [1]" / "a.jsonl").write_text("x")
    (tmp_path / "data 1").mkdir()
    (tmp_path / "data 1" / "b.jsonl").write_text("x")
    assert [file.url for file in find_input(Input(url=f"{tmp_path}/data [1]/*.jsonl")).files] == [
        f"{tmp_path}/data [1]/a.jsonl"
    ]
    assert [file.url for file in find_input(Input(url=f"{tmp_path}/data [12]/*.jsonl")).files] == [
        f"{tmp_path}/data 1/b.jsonl"
    ]


def test_names_on_object_stores(any_store: str) -> None:
    store = join_url(any_store, make_nonce())
    names = ["part[1].jsonl", "a b#c.jsonl", "std::vector.jsonl"]
    if store.startswith("memory://"):
        names.pop()  # its own filesystem lists no such names
    for name in names:
        replace_bytes(join_url(store, "data [1]", name), b'{"text": "one"}\n')
        assert read_texts(join_url(store, "data [1]", name)) == ["one"]
    assert read_texts(join_url(store, "data [1]")) == ["one"] * len(names)
    assert read_texts(join_url(store, "data [1]/*.jsonl")) == ["one"] * len(names)


def test_a_list_of_urls_is_read_in_its_order(tmp_path: Path) -> None:
    for name in ("a/1.jsonl", "b/1.jsonl", "b/2.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    memory = f"memory://{make_nonce()}/c.jsonl"
    replace_bytes(memory, b'{"text": "c"}\n')
    section = Input(url=(f"{tmp_path}/b/*", memory, f"{tmp_path}/a"))
    table = index_input(section, {"text": "text"})
    batch = read_partition(partition_source(table, 0))
    assert batch.values("text") == ["b/1.jsonl", "b/2.jsonl", "c", "a/1.jsonl"]
    with pytest.raises(InputError, match="matched twice"):
        find_input(Input(url=(f"{tmp_path}/b/*", f"{tmp_path}/b/2.jsonl")))
    with pytest.raises(InputError, match="nothing matches"):
        find_input(Input(url=(f"{tmp_path}/b/*", f"{tmp_path}/none")))


def test_what_a_web_page_is_known_by_holds_no_secret() -> None:
    """fsspec's own mark of a page is made of its URL, and so of the token in it."""
    store: Any = SimpleNamespace(checksum=lambda path: path)
    assert _tag(store, "https://host/a.jsonl?token=planted", {}) == "none"
    assert _tag(store, "https://host/a.jsonl?token=planted", {"ETag": '"7f"'}) == "7f"
    assert _tag(store, "bucket/a.jsonl", {}) == "bucket/a.jsonl"


@pytest.mark.parametrize("url", ["s3://bucket/caf\udce9", "caf\udce9", "a\0b", "s3://bucket/a\0b"])
def test_a_url_that_is_no_text_is_no_place(url: str) -> None:
    with pytest.raises(UsageError, match="no text of UTF-8"):
        absolute_url(url)
