"""Reading the rows that a job refused."""

from __future__ import annotations

import json

from daskinfer.spec.rows import Reject
from daskinfer.storage.filesystem import join_url, list_names, read_bytes
from daskinfer.storage.outputs.ledger import QUARANTINE


def read_quarantine(url: str, limit: int) -> list[Reject]:
    """Return the first `limit` rows of an output's quarantine, in input order."""
    folder = join_url(url, QUARANTINE)
    rejects: list[Reject] = []
    for name in list_names(folder):
        lines = read_bytes(join_url(folder, name)).decode().splitlines()
        rejects += [Reject(**json.loads(line)) for line in lines]
        if len(rejects) >= limit:
            break
    return rejects[:limit]
