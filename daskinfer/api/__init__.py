"""The one place that wires the floors together.

A notebook and an Airflow task call the same functions as the command line.
"""

from daskinfer.api.catalog import checkpoint, checkpoints, profile, publish
from daskinfer.api.comparison import compare
from daskinfer.api.control import cancel, drain
from daskinfer.api.moves import alias_history, roll_back, set_alias, unset_alias, yank
from daskinfer.api.retention import collect_garbage, locks
from daskinfer.api.retries import retry
from daskinfer.api.runs import jobs, report, run, status, validate, verify_output
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
    "status",
    "sync",
    "unset_alias",
    "validate",
    "verify",
    "verify_output",
    "yank",
]
