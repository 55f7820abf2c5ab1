"""What a retry compares before it computes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.runtime.changed_input import find_touched, has_changed, read_refused
from daskinfer.spec.recipe import Input
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.index import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.row_digest import digest_rows

RECORD: Any = SimpleNamespace(recipe=SimpleNamespace(input=SimpleNamespace(partition_rows=2)))


def write(place: Path, *texts: str) -> None:
    place.write_text("".join(f'{{"text": "{text}", "unread": 1}}\n' for text in texts))


def index(folder: Path) -> PartitionTable:
    section = Input.model_validate({"url": str(folder / "*.jsonl"), "partition_rows": 2})
    return index_input(section, {"text": "text"})


def commit(table: PartitionTable, number: int, *positions: int) -> Any:
    rows = read_partition(partition_source(table, number)).only(positions)
    return SimpleNamespace(partition=number, rows_digest=digest_rows(rows))


def test_rows_are_compared_wherever_they_lie(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "one", "two", "three")
    write(tmp_path / "b.jsonl", "four", "five", "six")
    before = index(tmp_path)
    whole = [commit(before, number, 0, 1) for number in range(3)]
    part = commit(before, 0, 1)
    write(tmp_path / "a.jsonl", "another one", "two", "three")
    now = index(tmp_path)
    assert find_touched(before, now) == {0, 1}
    assert [has_changed(now, each) for each in whole] == [True, False, False]
    assert not has_changed(now, part, only={1}) and not has_changed(now, part, without={0})
    assert has_changed(now, part, only={0})


def test_rows_that_were_refused_are_all_there(tmp_path: Path) -> None:
    assert read_refused(str(tmp_path), RECORD, 1, 0) == frozenset()
    with pytest.raises(IntegrityError, match=r"part-00000001\.jsonl is gone") as gone:
        read_refused(str(tmp_path), RECORD, 1, 1)
    assert "Put it back" in (gone.value.hint or "")
    place = tmp_path / "_quarantine/part-00000001.jsonl"
    place.parent.mkdir()
    place.write_text(json.dumps({"row": 3, "source": "a", "line": 4, "error": "why", "excerpt": ""}) + "\n")
    assert read_refused(str(tmp_path), RECORD, 1, 1) == {1}
    with pytest.raises(IntegrityError, match="holds 1 rows of partition 1, and 2 were refused"):
        read_refused(str(tmp_path), RECORD, 1, 2)
