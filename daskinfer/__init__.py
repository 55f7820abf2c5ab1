"""Batch inference on Dask, for models of any size over data of any size.

Names load when they are first used, so that `import daskinfer` costs nothing.
"""

from __future__ import annotations

# As type checkers read it. To import typing takes longer than all else here, and no signal is handled until then.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from daskinfer.api import (
        audit,
        checkpoint,
        checkpoints,
        compare,
        jobs,
        publish,
        report,
        run,
        set_alias,
        sign,
        signatures,
        status,
        validate,
    )
    from daskinfer.errors import DaskinferError
    from daskinfer.spec.comparison import GateReport
    from daskinfer.spec.job.record import JobStatus, Progress
    from daskinfer.spec.job.report import Report
    from daskinfer.spec.recipe.gate import Gate
    from daskinfer.spec.recipe.loader import load_recipe
    from daskinfer.spec.recipe.schema import Recipe

    __version__: str

__all__ = [
    "DaskinferError",
    "Gate",
    "GateReport",
    "JobStatus",
    "Progress",
    "Recipe",
    "Report",
    "__version__",
    "audit",
    "checkpoint",
    "checkpoints",
    "compare",
    "jobs",
    "load_recipe",
    "publish",
    "report",
    "run",
    "set_alias",
    "sign",
    "signatures",
    "status",
    "validate",
]

_HOMES = {
    "DaskinferError": "daskinfer.errors",
    "Gate": "daskinfer.spec.recipe.gate",
    "GateReport": "daskinfer.spec.comparison",
    "JobStatus": "daskinfer.spec.job.record",
    "Progress": "daskinfer.spec.job.record",
    "Recipe": "daskinfer.spec.recipe.schema",
    "Report": "daskinfer.spec.job.report",
    "load_recipe": "daskinfer.spec.recipe.loader",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        return import_module("importlib.metadata").version("daskinfer")
    if name not in __all__:
        raise AttributeError(f"module 'daskinfer' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "daskinfer.api")), name)


def __dir__() -> list[str]:
    return __all__
