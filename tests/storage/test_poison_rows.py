from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.poison import FailedAttempt, PoisonRecord, PoisonRow
from daskinfer.storage.jobs.poison_rows import PoisonRecords


def make_record(row: int, microbatch: int = 3, generation: int = 0) -> PoisonRecord:
    attempt = FailedAttempt(
        attempt=1, rows=1, stage=0, worker="tcp://w", what="raised", detail="ValueError: no", before=0.5
    )
    return PoisonRecord(
        generation=generation,
        partition=7,
        microbatch=microbatch,
        of=9,
        rows=(PoisonRow(row=row, kind="raised", error="the model raised ValueError: no"),),
        attempts=(attempt,),
    )


def test_what_is_written_first_counts_for_everybody(tmp_path: Path) -> None:
    mine, theirs = PoisonRecords(str(tmp_path)), PoisonRecords(str(tmp_path))
    assert mine.all() == []
    assert mine.record(make_record(row=1)) == make_record(row=1)
    assert theirs.record(make_record(row=2)) == make_record(row=1)
    # Another microbatch, and the same one of another generation, are others.
    for other in (make_record(row=5, microbatch=4), make_record(row=2, generation=1)):
        assert theirs.record(other) == other
    assert [found.positions for found in mine.all()] == [(1,), (5,), (2,)]


def test_of_many_that_write_at_once_one_is_believed(tmp_path: Path) -> None:
    def write(row: int) -> PoisonRecord:
        return PoisonRecords(str(tmp_path)).record(make_record(row))

    with ThreadPoolExecutor(8) as pool:
        believed = set(pool.map(write, range(8)))
    assert believed == set(PoisonRecords(str(tmp_path)).all()) and len(believed) == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    PoisonRecords(str(tmp_path)).record(make_record(row=1))
    (path,) = (tmp_path / "poison").iterdir()
    path.write_text(path.read_text()[:-9])
    with pytest.raises(IntegrityError, match=r"g0000-00000007-000003.json is not a record of poisonous rows"):
        PoisonRecords(str(tmp_path)).all()
