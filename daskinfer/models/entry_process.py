"""The process in which `entry_apart` builds a user's module once more.

``python -m daskinfer.models.entry_process`` reads an entry point as JSON and writes the digests of what its module holds
beside its saved state as JSON.
"""

from __future__ import annotations

import json
import sys

from daskinfer.errors import DaskinferError
from daskinfer.models.entry import call_with_weights
from daskinfer.models.unsaved import collect_unsaved, digest_values, seeded
from daskinfer.spec.snapshot import EntryPoint


def main() -> None:
    """Build the module that standard input names."""
    entry = EntryPoint.model_validate_json(sys.stdin.read())
    try:
        with seeded(1):
            values = collect_unsaved(call_with_weights(entry))
    except DaskinferError as error:
        sys.exit(error.message)
    print("\n" + json.dumps(digest_values(values)))


if __name__ == "__main__":
    main()
