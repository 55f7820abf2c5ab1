"""What a snapshot's digest is taken of: all that is computed with, and nothing of where it lies or who published it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daskinfer.spec.snapshot import EntryPoint, LayerGroup, Manifest, PlainFile, TensorEntry

HEX = "0" * 64
TENSOR = TensorEntry(name="weight", blake3=HEX, dtype="F32", shape=(2,), begin=8, end=16, file="s3://bucket/a")
MANIFEST = Manifest(
    model="mini",
    architecture="TestModel",
    dtype="float32",
    parent=HEX,
    files=(PlainFile(path="config.json", size=2, sha256=HEX, blob="blobs/00"),),
    groups=(LayerGroup(name="layer.0", size=16, sha256=HEX, blob="blobs/01", tensors=(TENSOR,)),),
    tied={"lm_head.weight": "embeddings.weight"},
    entry=EntryPoint(function="package.module:make", source=HEX),
    provenance={"source": "here"},
    salt="0123abcd",
)
PLACES = {
    *("model", "parent", "files.0.blob", "groups.0.blob", "provenance.source", "checksum"),
    *(f"groups.0.tensors.0.{name}" for name in ("begin", "end", "file")),
}


def leaves(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*place, key))
    else:
        yield place, value


def change(place: tuple[str | int, ...], value: Any) -> Manifest:
    changed: Any = MANIFEST.model_dump(mode="json")
    section = changed
    for step in place[:-1]:
        section = section[step]
    section[place[-1]] = value + 1 if isinstance(value, int) else f"{value}1"
    return Manifest.model_validate(changed)


def test_the_digest_is_of_the_content_and_of_no_place() -> None:
    found = dict(leaves(MANIFEST.model_dump(mode="json", exclude={"schema_"})))
    assert len(found) > 20
    same = {
        ".".join(map(str, place)) for place, value in found.items() if change(place, value).digest == MANIFEST.digest
    }
    assert same == PLACES
    assert MANIFEST.model_copy(update={"entry": None}).digest != MANIFEST.digest
    assert MANIFEST.model_copy(update={"tied": {}}).digest != MANIFEST.digest


def test_the_content_is_of_weights_and_files_alone() -> None:
    assert MANIFEST.model_copy(update={"salt": None}).content == MANIFEST.content
    for place in (("groups", 0, "sha256"), ("files", 0, "sha256"), ("entry", "source"), ("tied", "lm_head.weight")):
        assert change(place, HEX).content != MANIFEST.content
