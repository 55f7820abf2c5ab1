"""The one place that wires the floors together.

A notebook and an Airflow task call the same functions as the command line. Each loads when it is first used: to list jobs
takes none of what running one does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskinfer.api.catalog import checkpoint, checkpoints, profile, publish
    from daskinfer.api.clusters import cluster_status, start_cluster, stop_cluster
    from daskinfer.api.comparison import compare
    from daskinfer.api.control import cancel, drain
    from daskinfer.api.moves import alias_history, roll_back, set_alias, unset_alias, yank
    from daskinfer.api.records import jobs, report, status, verify_output
    from daskinfer.api.retention import collect_garbage, locks
    from daskinfer.api.retries import retry
    from daskinfer.api.runs import run, validate
    from daskinfer.api.stores import examine_store
    from daskinfer.api.trust import audit, bucket_policy, keygen, role_policy, roles, sign, signatures
    from daskinfer.api.upkeep import diff, sync, verify

__all__ = [
    "alias_history",
    "audit",
    "bucket_policy",
    "cancel",
    "checkpoint",
    "checkpoints",
    "cluster_status",
    "collect_garbage",
    "compare",
    "diff",
    "drain",
    "examine_store",
    "jobs",
    "keygen",
    "locks",
    "profile",
    "publish",
    "report",
    "retry",
    "role_policy",
    "roles",
    "roll_back",
    "run",
    "set_alias",
    "sign",
    "signatures",
    "start_cluster",
    "status",
    "stop_cluster",
    "sync",
    "unset_alias",
    "validate",
    "verify",
    "verify_output",
    "yank",
]

_HOMES = {
    "alias_history": "moves",
    "audit": "trust",
    "bucket_policy": "trust",
    "cancel": "control",
    "checkpoint": "catalog",
    "checkpoints": "catalog",
    "cluster_status": "clusters",
    "collect_garbage": "retention",
    "compare": "comparison",
    "diff": "upkeep",
    "drain": "control",
    "examine_store": "stores",
    "jobs": "records",
    "keygen": "trust",
    "locks": "retention",
    "profile": "catalog",
    "publish": "catalog",
    "report": "records",
    "retry": "retries",
    "role_policy": "trust",
    "roles": "trust",
    "roll_back": "moves",
    "run": "runs",
    "set_alias": "moves",
    "sign": "trust",
    "signatures": "trust",
    "start_cluster": "clusters",
    "status": "records",
    "stop_cluster": "clusters",
    "sync": "upkeep",
    "unset_alias": "moves",
    "validate": "runs",
    "verify": "upkeep",
    "verify_output": "records",
    "yank": "moves",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'daskinfer.api' has no attribute {name!r}")
    return getattr(import_module(f"daskinfer.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
