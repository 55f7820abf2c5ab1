from __future__ import annotations

import json
from pathlib import Path

import pytest

from daskinfer.errors import JobFailed
from daskinfer.runtime.jobs.over_budget import explain_rejects
from daskinfer.runtime.state_machine.failures import refuse_rejects
from daskinfer.spec.job.report import Incident
from daskinfer.storage.outputs.staging import staged_url


def refused(url: str, lines: int) -> None:
    folder = Path(url, "_quarantine")
    folder.mkdir(parents=True)
    told = {"row": 0, "source": "in.jsonl", "error": "not JSON", "excerpt": "", "kind": "unreadable"}
    folder.joinpath("part-00000000.jsonl").write_text(
        "".join(json.dumps({**told, "line": line}) + "\n" for line in range(1, lines + 1))
    )


@pytest.mark.parametrize("is_staged", [False, True])
def test_the_first_rows_and_the_quarantine_are_named(tmp_path: Path, is_staged: bool) -> None:
    output = str(tmp_path / "out.zarr")
    place = staged_url(output, "news-1", 0) if is_staged else output
    refused(place, 5)
    error = explain_rejects(refuse_rejects(5, 1), output, "news-1", (), is_corrected=False)
    assert error.message.splitlines() == [
        "5 rows are quarantined; errors.max_rows allows 1",
        *(f"in.jsonl:{line}: not JSON" for line in (1, 2, 3)),
        f"the quarantine: {place}/_quarantine",
    ]
    assert "run again with `--set errors.max_rows=N`" in (error.hint or "")


def test_a_rejected_row_is_told_in_a_line_of_its_own(tmp_path: Path) -> None:
    refused(str(tmp_path), 1)
    file = tmp_path / "_quarantine/part-00000000.jsonl"
    file.write_text(file.read_text().replace("in.jsonl", r"in\nerror: planted\u001b[2K"))
    error = explain_rejects(refuse_rejects(1, 0), str(tmp_path), "news-1", (), is_corrected=False)
    assert len(error.message.splitlines()) == 3 and "\x1b" not in error.message
    assert error.message.splitlines()[1].startswith(r"in\nerror: planted\x1b[2K:1")


def test_a_retry_is_told_to_retry(tmp_path: Path) -> None:
    error = explain_rejects(refuse_rejects(1, 0), str(tmp_path), "news-1", (), is_corrected=True)
    assert error.message == "1 row is quarantined; errors.max_rows allows 0"
    assert "`daskinfer retry news-1 --set errors.max_rows=N" in (error.hint or "")
    assert "run again" not in (error.hint or "")


def test_rows_that_broke_the_model_are_named_before_they_are_in_the_quarantine(tmp_path: Path) -> None:
    poison = Incident(at=1, kind="poison", detail="partition 0, microbatch 0, row 7 of the partition: boom")
    error = explain_rejects(refuse_rejects(1, 0), str(tmp_path), "news-1", (poison,), is_corrected=False)
    assert poison.detail in error.message
    other = JobFailed("boom")
    assert explain_rejects(other, str(tmp_path), "news-1", (poison,), is_corrected=False) is other
