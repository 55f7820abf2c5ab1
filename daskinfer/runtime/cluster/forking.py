"""Worker processes that are forked from one which has imported all that they need.

To import torch and transformers takes seconds, in every worker at once, and again in each that replaces a dead one while
its stage stands still. A fork server imports them once; what it forks is at work in a fraction of a second, and shares
the memory of the imported code. The workers of a local cluster are made so; elsewhere a nanny makes them so with

    dask worker ... --preload-nanny daskinfer.runtime.cluster.forking
"""

from __future__ import annotations

from typing import Any

import dask
from distributed import Nanny
from distributed.utils import get_mp_context

from daskinfer.runtime.cluster.fork_server import can_fork, choose_imports


def fork_workers() -> dict[str, Any]:
    """Choose what workers are forked from, and return the Dask settings with which nannies fork them.

    Returns
    -------
    dict
        Empty where forking is not safe: macOS's own libraries do not survive it.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch("sys.platform", "darwin"):
    ...     fork_workers()
    {}
    """
    if not can_fork():
        return {}
    settings = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(settings):
        get_mp_context()  # Dask makes a choice of its own the first time, which must not come later
    choose_imports()
    return settings


def dask_setup(nanny: Nanny) -> None:
    """Let a nanny fork its workers; Dask calls it for `--preload-nanny`.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> method = "distributed.worker.multiprocessing-method"
    >>> with dask.config.set({method: "spawn"}), patch(f"{__name__}.fork_workers", return_value={method: "forkserver"}):
    ...     dask_setup(None)
    ...     dask.config.get(method)
    'forkserver'
    """
    dask.config.set(fork_workers())
