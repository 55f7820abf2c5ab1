"""What a job is was written down once: whoever goes on with it refuses records that are others by now."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import IntegrityError
from daskinfer.runtime.jobs.job_resolution import open_job
from daskinfer.storage.jobs.store import JobStore
from daskinfer.storage.outputs.job_output import check_record
from daskinfer.storage.outputs.owner import Owner, claim, current_owner
from daskinfer.testing.fixtures.jobs import finish_job
from daskinfer.testing.fixtures.plans import make_worker
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.conftest import Bench, make_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("changed")
    return make_bench(folder, make_tiny_bert(folder / "tiny", layers=2), 300)


def edit_record(path: Path, **changes: Any) -> None:
    stored = json.loads(path.read_bytes())
    stored["record"] |= changes
    path.write_text(json.dumps(stored))


def swap_partitions(path: Path) -> None:
    """Let each of two partitions read the rows of the other."""
    table = json.loads(gzip.decompress(path.read_bytes()))
    for column in ("begin", "end", "line"):
        values = table["partitions"][column]
        values[:2] = reversed(values[:2])
    path.write_bytes(gzip.compress(json.dumps(table).encode()))


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "rows of two partitions": ("inputs.json.gz", swap_partitions),
    "table gone": ("inputs.json.gz", Path.unlink),
    "request": ("job.json", lambda path: edit_record(path, request="sha256:0")),
    "registry": ("job.json", lambda path: edit_record(path, registry="/elsewhere")),
    "slots": ("job.json", lambda path: edit_record(path, slots=7)),
    "output": ("job.json", lambda path: edit_record(path, output="/elsewhere")),
}


@pytest.mark.late
@pytest.mark.parametrize("change", CHANGES)
def test_a_job_whose_records_were_changed_does_not_go_on(bench: Bench, change: str) -> None:
    name, edit = CHANGES[change]
    recipe, workers = bench.recipe("out.zarr", pipeline__stages=1), [make_worker("a")]
    job = open_job(recipe, workers, fresh=False)
    owner = current_owner(job.record.output)
    assert owner is not None and owner.record == job.store.record_digest() and owner.table == job.store.table_digest()
    path = bench.folder / "work/jobs" / job.store.job / name
    before = path.read_bytes()
    edit(path)
    with pytest.raises(
        IntegrityError, match=f"{name} (was changed since the job began|is gone|names the output)"
    ) as refused:
        open_job(recipe, workers, fresh=False)
    assert refused.value.hint
    path.write_bytes(before)
    assert open_job(recipe, workers, fresh=False).resumed


def test_an_owner_of_before_there_were_digests_names_its_job_alone(tmp_path: Path) -> None:
    record = finish_job(str(tmp_path / "work"), str(tmp_path / "out.jsonl"))
    store, owner = JobStore(str(tmp_path / "work"), "demo"), current_owner(record.output)
    assert owner is not None
    claim(record.output, Owner(**owner.model_dump(exclude={"record", "table"})), owner)
    edit_record(tmp_path / "work/jobs/demo/job.json", length="another reason")
    check_record(store, store.record())
    edit_record(tmp_path / "work/jobs/demo/job.json", request="sha256:0")
    with pytest.raises(IntegrityError, match="request is sha256:0, was"):
        check_record(store, store.record())
