"""A job that is nearly done reads next to nothing of its input when it goes on: in the driver and in the workers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from daskinfer.storage.jobs.store import JobStore
from tests.e2e.conftest import Bench, data_bytes, run
from tests.e2e.faults import patched_workers

cloudpickle.register_pickle_by_value(sys.modules[__name__])

PARTITIONS = 150


def count_reads(patch: pytest.MonkeyPatch, folder: str, log: str) -> None:
    """Write down the length of everything that is read below a folder."""
    from fsspec.implementations.local import LocalFileOpener

    plain = LocalFileOpener.read

    def read(self: Any, *words: Any) -> bytes:
        data: bytes = plain(self, *words)
        if str(self.path).startswith(folder):
            with Path(log).open("a") as stream:
                stream.write(f"{len(data)}\n")
        return data

    patch.setattr(LocalFileOpener, "read", read)


@pytest.mark.late
def test_a_job_that_is_nearly_done_reads_little(
    bench: Bench, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "input", tmp_path / "reads"
    folder.mkdir()
    source = (bench.folder / "in.jsonl").rename(folder / "in.jsonl")
    recipe = bench.recipe(input__url=str(source), input__partition_rows=2)
    count_reads(monkeypatch, str(folder), str(log))
    with patched_workers(scheduler, count_reads, str(folder), str(log)):
        report = run(recipe, scheduler)
        # Once to count the rows, once to compute them.
        assert sum(map(int, log.read_text().split())) >= 2 * source.stat().st_size
        before = data_bytes(bench.folder / "out.zarr")
        output, job = bench.folder / "out.zarr", Path(JobStore(recipe.workspace, report.job).url)
        for gone in (output / "_MANIFEST.json", job / "done.json"):
            gone.unlink()
        records = sorted((output / "_daskinfer/commits" / report.job).glob("*.json"))
        assert len(records) == PARTITIONS
        records[70].unlink()
        log.unlink()
        report = run(recipe, scheduler)
    assert report.partitions_resumed == PARTITIONS - 1
    assert 0 < sum(map(int, log.read_text().split())) < 0.02 * source.stat().st_size
    assert data_bytes(bench.folder / "out.zarr") == before
