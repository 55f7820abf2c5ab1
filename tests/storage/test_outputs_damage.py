"""Damaged files of an output are named, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from daskinfer.errors import DaskinferError
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.manifest import read_manifest
from daskinfer.storage.outputs.owner import Owner, claim, current_owner, former_owners
from daskinfer.storage.outputs.quarantine import read_quarantine
from daskinfer.storage.outputs.reading import open_output
from daskinfer.storage.outputs.retry_rounds import next_round
from daskinfer.storage.outputs.sink import OutputLayout
from daskinfer.storage.outputs.tables import TableSink
from daskinfer.testing.contracts.sinks import (
    FIELDS,
    JOB,
    KEEP,
    METADATA,
    PARTITION_ROWS,
    ROWS,
    SNAPSHOT,
    make_part,
    make_record,
)

LAYOUT = OutputLayout(JOB, FIELDS, KEEP, PARTITION_ROWS, ROWS, METADATA, {0: SNAPSHOT})
READERS: tuple[Callable[[str], object], ...] = (
    current_owner,
    lambda url: former_owners(url, JOB),
    read_manifest,
    lambda url: next_round(url, JOB),
    lambda url: read_quarantine(url, 9),
    lambda url: list(CommitLog(url, LAYOUT).digests()),
    lambda url: [open_output(url).read(number) for number in range(3)],
    lambda url: TableSink(url, LAYOUT, "jsonl").seal({}),
)
DAMAGES = {
    "empty": b"",
    "short": None,
    "null": bytes(7),
    "no text": bytes([255, 254, 1]),
    "list": b"[]",
    "number": b"7",
    "types": b'{"job": 7, "nonce": 1, "partition": [], "parts": 3, "retries": 7}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_is_taken_for_a_mistake_of_the_program(tmp_path: Path, damage: str) -> None:
    url = str(tmp_path / "out")
    claim(url, Owner(job=JOB, request="r", snapshot=SNAPSHOT, created="2026-01-01T00:00:00+00:00"), None)
    sink = TableSink(url, LAYOUT, "jsonl")
    for number in range(3):
        part = make_part(number, (1,) if number == 1 else ())
        sink.commit(make_record(part, sink.write(part)))
    sink.seal({})
    for path in [path for path in (tmp_path / "out").rglob("*") if path.is_file()]:
        whole, new = path.read_bytes(), DAMAGES[damage]
        path.write_bytes(whole[: len(whole) // 2] if new is None else new)
        named, digits = 0, "".join(filter(str.isdigit, path.stem))
        names = [path.name, *([f"partition {int(digits)}"] if digits else [])]
        for read in READERS:
            try:
                read(url)
            except DaskinferError as error:
                named += any(name in str(error) for name in names)
        assert named, path
        path.write_bytes(whole)
