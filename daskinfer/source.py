"""Which code this is: the digest of every source file that can change a job's output."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

# What only talks to people cannot change a byte of the output.
_BYSTANDERS = {"cli", "reports", "testing"}


@cache
def digest_source() -> str:
    """Return `sha256:...` over daskinfer's own source files, names and contents, in a fixed order.

    Examples
    --------
    >>> digest_source() == digest_source()
    True
    >>> digest_source()[:7], len(digest_source())
    ('sha256:', 71)
    """
    root = Path(__file__).parent
    total = hashlib.sha256()
    for folder in sorted([root, *(path for path in root.iterdir() if _is_floor(path))]):
        # Path.rglob stops at links, and graphs/ and storage/ are links in a checkout.
        for path in sorted(folder.resolve().rglob("*.py") if folder != root else folder.glob("*.py")):
            name = f"{folder.name}/{path.relative_to(folder.resolve())}"
            total.update(f"{name}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return f"sha256:{total.hexdigest()}"


def _is_floor(path: Path) -> bool:
    return path.is_dir() and path.name not in _BYSTANDERS and not path.name.startswith("__")
