from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.ids import make_nonce
from daskinfer.storage.objects.slotlog import SlotLog
from daskinfer.storage.objects.urls import join_url
from daskinfer.testing.contracts.stores import SlotLogContract
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, cut_short, lose_acknowledgement

APPENDER = """
import sys
from daskinfer.storage.objects.slotlog import SlotLog
log = SlotLog(sys.argv[1])
for turn in range(20):
    log.append({"writer": int(sys.argv[2]), "turn": turn})
"""


class TestSlotLog(SlotLogContract):
    @pytest.fixture
    def store(self, any_store: str) -> str:
        return any_store


def test_processes_write_one_linear_history(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, str(tmp_path), str(n)]) for n in range(4)]
    assert [writer.wait(timeout=180) for writer in writers] == [0] * 4
    slots = SlotLog(str(tmp_path)).read()
    assert [slot.sequence for slot in slots] == list(range(80))
    for number in range(4):
        assert [slot.record["turn"] for slot in slots if slot.record["writer"] == number] == list(range(20))


def test_a_stale_listing_does_not_hide_the_head() -> None:
    log = SlotLog(f"memory://{make_nonce()}")
    for number in range(4):
        log.append({"n": number})
    with FaultyFS(log.url, "ls", cut_short) as faults:
        head = log.head()
    assert faults.hits == 1
    assert head is not None and head.record == {"n": 3}


@pytest.mark.s3
def test_a_lost_acknowledgement_does_not_double_a_record(s3_url: str) -> None:
    log = SlotLog(join_url(s3_url, make_nonce()))
    with FaultyFS(s3_url, "pipe_file", lose_acknowledgement) as faults:
        assert log.append({"n": 0}).sequence == 0
    assert faults.hits == 1
    assert log.append({"n": 1}, expect=1).sequence == 1
    assert [slot.record for slot in log.read()] == [{"n": 0}, {"n": 1}]


def test_gaps_and_damage_are_noticed(tmp_path: Path) -> None:
    log = SlotLog(str(tmp_path))
    for number in range(3):
        log.append({"n": number})
    (tmp_path / "000000000001.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"000000000001.json is not a record"):
        log.read()
    (tmp_path / "000000000001.json").unlink()
    with pytest.raises(IntegrityError, match=r"record 1 .* is missing"):
        log.read()


def test_what_a_record_lacks_is_damage_that_is_named(tmp_path: Path) -> None:
    log = SlotLog(str(tmp_path))
    log.append({"op": "publish"})
    place = tmp_path / "000000000000.json"
    place.write_text(place.read_text().replace("op", "Op"))
    (slot,) = log.read()
    with pytest.raises(IntegrityError, match=f"{place} does not say 'op'") as raised:
        slot.record["op"]
    assert "put it back" in (raised.value.hint or "")
