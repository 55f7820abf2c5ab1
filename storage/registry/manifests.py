"""Manifests as a registry holds them: bytes that anybody may have written, checked before they are followed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from daskinfer.errors import CorruptBlob
from daskinfer.ids import parse_json, shorten
from daskinfer.spec.names import check_count, check_hex, check_path
from daskinfer.spec.snapshot import Manifest

_SNAPSHOT = re.compile(r"sha256:[0-9a-f]{64}")


def parse_manifest(data: bytes | Mapping[str, Any], where: str) -> Manifest:
    """Return a manifest that was read.

    Parameters
    ----------
    data
        Its bytes, or the JSON object that it is part of a record as.
    where
        URL that it was read from.

    Raises
    ------
    CorruptBlob
        It is no manifest, or one of its names or paths leaves its place.

    Examples
    --------
    >>> manifest = Manifest(model="tiny", architecture="TestModel", dtype="float32", files=(), groups=())
    >>> parse_manifest(manifest.encode(), "manifest.json") == manifest
    True
    >>> parse_manifest(manifest.encode().replace(b"float32", b"float16"), "manifest.json")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CorruptBlob: manifest manifest.json cannot be followed: it is not what was written: ...
    """
    try:
        manifest = Manifest.model_validate_json(data) if isinstance(data, bytes) else Manifest.model_validate(data)
        _check_names(manifest)
        if isinstance(data, bytes) and manifest.checksum != parse_json(manifest.encode()).get("checksum"):
            raise ValueError("it is not what was written: its checksum differs")
        manifest = manifest.model_copy(update={"checksum": None})
    except ValidationError as error:
        first = error.errors()[0]
        raise _refuse(where, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise _refuse(where, str(error)) from error
    return manifest


def name_manifest(snapshot: str, where: str) -> str:
    """Return the name of a snapshot's manifest in a registry, without its suffix.

    Raises
    ------
    CorruptBlob
        What a record gives as snapshot is no snapshot digest.

    Examples
    --------
    >>> name_manifest("../other", "registry")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CorruptBlob: a record in registry names '../other' as a snapshot, which is no digest...
    """
    if not _SNAPSHOT.fullmatch(snapshot):
        raise CorruptBlob(
            f"a record in {where} names {snapshot[:100]!r} as a snapshot, which is no digest",
            hint="The registry was damaged or changed by hand: restore the record.",
        )
    return shorten(snapshot, 64)


def _check_names(manifest: Manifest) -> None:
    """Raise `ValueError` where a path would leave its folder, or a digest or a length is none."""
    for file in manifest.files:
        check_path(file.path)
    for piece in manifest.pieces:
        check_hex(piece.sha256)
        check_count(piece.size)
        if piece.blob is not None:
            check_path(piece.blob)
    for tensor in (tensor for group in manifest.groups for tensor in group.tensors):
        check_hex(tensor.blake3)
        check_count(tensor.begin)
        check_count(tensor.end - tensor.begin)


def _refuse(where: str, why: str) -> CorruptBlob:
    return CorruptBlob(
        f"manifest {where} cannot be followed: {why}",
        hint="It was damaged or changed by hand, or a newer daskinfer wrote it: restore it, publish again, or upgrade.",
    )
