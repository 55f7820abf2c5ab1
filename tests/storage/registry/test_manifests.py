"""Every name, digest and length in a manifest is checked before it is followed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daskinfer.errors import CorruptBlob
from daskinfer.spec.snapshot import LayerGroup, Manifest, PlainFile, TensorEntry
from daskinfer.storage.registry.manifests import name_manifest, parse_manifest

HEX = "0" * 64
TENSOR = TensorEntry(name="weight", blake3=HEX, dtype="F32", shape=(2,), begin=8, end=16)
MANIFEST = Manifest(
    model="mini",
    architecture="TestModel",
    dtype="float32",
    files=(PlainFile(path="config.json", size=2, sha256=HEX, blob="blobs/00/00"),),
    groups=(LayerGroup(name="layer.0", size=16, sha256=HEX, blob="blobs/00/01", tensors=(TENSOR,)),),
)
LEAVING = ["../victim", "/victim", "a/../../victim", "s3://bucket/victim", "a\\..\\victim", "a\0b", "\x1b[2J", ""]


def change(place: str, value: object) -> dict[str, Any]:
    """Return the manifest with another value at a place."""
    changed: dict[str, Any] = MANIFEST.model_dump(mode="json")
    section: Any = changed
    *steps, last = place.split(".")
    for step in steps:
        section = section[0][step] if isinstance(section, list) else section[step]
    section[0][last] = value
    return changed


@pytest.mark.parametrize(
    ("place", "values", "said"),
    [
        ("files.path", LEAVING, "is not a path inside a folder"),
        ("files.blob", LEAVING, "is not a path inside a folder"),
        ("groups.blob", LEAVING, "is not a path inside a folder"),
        ("files.sha256", ["../victim", HEX[1:], HEX.replace("0", "G"), ""], "is not a digest"),
        ("groups.sha256", ["../victim", HEX[1:], ""], "is not a digest"),
        ("groups.tensors.blake3", ["../victim", HEX[1:], ""], "is not a digest"),
        ("files.size", [-1], "is not a number of bytes"),
        ("groups.size", [-1], "is not a number of bytes"),
        ("groups.tensors.begin", [-1], "is not a number of bytes"),
        ("groups.tensors.end", [7], "is not a number of bytes"),
    ],
)
def test_what_a_manifest_names_is_checked(place: str, values: list[object], said: str) -> None:
    assert parse_manifest(MANIFEST.model_dump(mode="json"), "here") == MANIFEST
    for value in values:
        with pytest.raises(CorruptBlob, match=f"manifest here cannot be followed: .*{said}"):
            parse_manifest(change(place, value), "here")


def test_bytes_with_another_checksum_are_no_manifest() -> None:
    """What the digest is not taken of, such as where a blob lies, is not changed unseen either."""
    stored = json.loads(MANIFEST.encode())
    stored["files"][0]["blob"] = "blobs/00/02"
    with pytest.raises(CorruptBlob, match="its checksum differs"):
        parse_manifest(json.dumps(stored).encode(), "here")


@pytest.mark.parametrize("snapshot", ["sha256:../victim", "sha256:" + HEX[1:], "../victim", f"sha256:{HEX}\n", HEX])
def test_a_snapshot_is_a_digest(snapshot: str) -> None:
    with pytest.raises(CorruptBlob, match="which is no digest"):
        name_manifest(snapshot, "registry")
