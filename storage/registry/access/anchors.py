"""The end of every chain of events as this machine last saw it: whoever writes a chain anew cannot change that."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daskinfer.ids import digest_of, make_nonce, parse_json, shorten
from daskinfer.storage.tensors.node_cache import private_folder


@dataclass(frozen=True, slots=True)
class Anchor:
    """An event that was there."""

    number: int
    """Its place in the chain."""
    digest: str
    """Of its bytes."""
    file: Path
    """Where this machine keeps that."""


def read_anchor(registry: str, chain: str) -> Anchor | None:
    """Return the last event of a chain that this machine has seen; None where it has seen none.

    Examples
    --------
    >>> drop_anchor("/registry/read", "ann@host", 4, "sha256:ab")
    >>> read_anchor("/registry/read", "ann@host").number, read_anchor("/registry/read", "bob@host")
    (4, None)
    """
    file = _find_file(registry, chain)
    with suppress(OSError, ValueError, KeyError, TypeError):
        if file is not None:
            record = parse_json(file.read_bytes())
            return Anchor(int(record["number"]), str(record["digest"]), file)
    return None


def list_anchored(registry: str) -> set[str]:
    """Return the chains of a registry that this machine has seen: a whole one may be gone.

    Examples
    --------
    >>> drop_anchor("/registry/list", "ann@host", 0, "sha256:ab")
    >>> list_anchored("/registry/list")
    {'ann@host'}
    """
    folder = private_folder("audit")
    found: set[str] = set()
    for file in () if folder is None else folder.glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = parse_json(file.read_bytes())
            if record["registry"] == registry:
                found.add(str(record["chain"]))
    return found


def forget_anchors(registry: str) -> None:
    """Forget the chains of a registry that begins anew in an empty folder.

    Examples
    --------
    >>> drop_anchor("/registry/forget", "ann@host", 0, "sha256:ab")
    >>> forget_anchors("/registry/forget")
    >>> list_anchored("/registry/forget")
    set()
    """
    for chain in list_anchored(registry):
        if (file := _find_file(registry, chain)) is not None:
            file.unlink(missing_ok=True)


def drop_anchor(registry: str, chain: str, number: int, digest: str) -> None:
    """Remember an event, unless a later one is known; a machine that cannot keep it does without.

    Examples
    --------
    >>> drop_anchor("/registry/drop", "ann@host", 7, "sha256:ab")
    >>> drop_anchor("/registry/drop", "ann@host", 5, "sha256:cd")
    >>> read_anchor("/registry/drop", "ann@host").number
    7
    """
    file, known = _find_file(registry, chain), read_anchor(registry, chain)
    if file is None or (known is not None and known.number >= number):
        return
    with suppress(OSError):
        half = file.with_suffix(f".{make_nonce(8)}.tmp")
        half.write_text(json.dumps({"registry": registry, "chain": chain, "number": number, "digest": digest}))
        half.replace(file)


def _find_file(registry: str, chain: str) -> Path | None:
    folder = private_folder("audit")
    return None if folder is None else folder / f"{shorten(digest_of([registry, chain]), 32)}.json"
