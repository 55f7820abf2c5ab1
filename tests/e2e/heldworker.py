"""What a worker is preloaded with that commits, computes and reads only as files in a folder allow."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

from daskinfer.graphs import tasks
from daskinfer.storage.store_errors import explain_errors

VARIABLE = "HELD_FOLDER"


def dask_setup(worker: Any) -> None:
    """Begin, in the worker's process."""
    folder = Path(os.environ[VARIABLE])

    def hold(call: Any) -> Any:
        def call_later(*words: Any) -> Any:
            while (folder / f"hold-{call.__name__}").exists():
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
