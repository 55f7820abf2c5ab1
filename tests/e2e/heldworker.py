"""What a worker is preloaded with that commits, computes and reads only as files in a folder allow.

So a job is still running when something else happens, however fast the machine is.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Status

from daskinfer.graphs import tasks
from daskinfer.storage.objects.store_errors import explain_errors

VARIABLE = "HELD_FOLDER"


def held_environment(folder: Path) -> dict[str, str]:
    """Return with what a command has to start for its local workers to obey the files of a folder."""
    return {VARIABLE: str(folder), "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([__file__])}


@contextmanager
def holding(folder: Path, call: str, after: int = 0) -> Iterator[None]:
    """Let every worker of a folder wait before a call, once it has made so many of them."""
    place = folder / f"hold-{call}"
    place.write_text(str(after))
    try:
        yield
    finally:
        place.unlink()


def _allowed(hold: Path) -> float:
    """Return how many calls a worker may make."""
    try:
        return int(hold.read_text() or 0)
    except FileNotFoundError:
        return float("inf")


def dask_setup(worker: Any) -> None:
    """Begin, in the worker's process."""
    folder = Path(os.environ[VARIABLE])

    def hold(call: Any) -> Any:
        made = itertools.count()

        def call_later(*words: Any) -> Any:
            number = next(made)
            # Whoever is to end must not have to wait for it.
            while number >= _allowed(folder / f"hold-{call.__name__}") and worker.status == Status.running:
                time.sleep(0.02)
            return call(*words)

        call_later.__name__ = call.__name__
        return call_later

    def refuse(call: Any) -> Any:
        def call_or_refuse(*words: Any) -> Any:
            if (folder / call.__name__).exists():
                with explain_errors("s3://bucket/rows", "reach"):
                    raise OSError(errno.ETIMEDOUT, "Slow down")
            return call(*words)

        call_or_refuse.__name__ = call.__name__
        return call_or_refuse

    tasks.commit_partition = hold(tasks.commit_partition)
    tasks.run_stage = hold(refuse(tasks.run_stage))
    tasks.read_partition = refuse(tasks.read_partition)  # type: ignore[attr-defined]
