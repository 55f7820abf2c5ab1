"""What the fault tests share: acting in mid-run, patching workers, looking at what lies on disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import Client

from daskinfer.errors import Interrupted
from daskinfer.knobs import PROGRESS_SECONDS
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from tests.e2e.conftest import run

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def once(rows: int, act: Callable[[], object]) -> Callable[[Progress], None]:
    """Return a `watch` that acts as soon as so many rows are committed, once."""
    left = [act]

    def watch(progress: Progress) -> None:
        if left and progress.phase == "running" and progress.rows_done >= rows:
            left.pop()()

    return watch


def interrupt(recipe: Recipe, scheduler: str, rows: int = 32, **options: Any) -> None:
    """Run until so many rows are committed, interrupt as Ctrl-C does, and wait for the workers to come to rest."""

    def stop() -> None:
        raise KeyboardInterrupt

    # Workers go on while the driver stops: they are to have little left, and not the rest of the job.
    pipeline = recipe.pipeline.model_copy(update={"window": 2})
    with PROGRESS_SECONDS.override(0.0), pytest.raises(Interrupted):
        run(recipe.model_copy(update={"pipeline": pipeline}), scheduler, watch=once(rows, stop), **options)
    with Client(scheduler) as client:
        while any(client.run(_count_executing).values()):
            time.sleep(0.02)


def _count_executing(dask_worker: Any) -> int:
    return len(dask_worker.state.executing)


@contextmanager
def patched_workers(
    scheduler: str, install: Callable[..., None], *words: Any, only: int | None = None
) -> Iterator[None]:
    """Call `install(patch, *words)` in every worker, or in the one that holds stage `only`; undo it afterwards."""

    def enter(words: tuple[Any, ...], dask_worker: Any) -> None:
        dask_worker.test_patch = pytest.MonkeyPatch()
        install(dask_worker.test_patch, *words)

    def leave(dask_worker: Any) -> None:
        if hasattr(dask_worker, "test_patch"):  # else it has come since
            dask_worker.test_patch.undo()

    with Client(scheduler) as client:
        # Stages are given out in the order of addresses.
        workers = [sorted(_two_workers(client))[only]] if only is not None else None
        client.run(enter, words, workers=workers)
        try:
            yield
        finally:
            there = client.scheduler_info(n_workers=-1)["workers"]
            client.run(leave, workers=[worker for worker in workers or there if worker in there])


def _two_workers(client: Client) -> list[str]:
    """Return the workers that `run` uses by default."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [address for address, worker in workers.items() if "TWO" in worker["resources"]]


def commits(output: Path) -> dict[int, dict[str, Any]]:
    """Return every commit record of an output, of whatever job."""
    records = [json.loads(path.read_text()) for path in sorted(output.glob("_daskinfer/commits/*/*.json"))]
    return {record["partition"]: record for record in records}


def fingerprints(*folders: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Return inode, time and bytes of every file."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}
