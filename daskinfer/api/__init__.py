"""The one place that wires the floors together.

A notebook and an Airflow task call the same functions as the command line.
"""

from daskinfer.api.catalog import checkpoint, checkpoints, profile, publish, set_alias
from daskinfer.api.runs import jobs, report, run, status, validate
from daskinfer.api.trust import audit, bucket_policy, keygen, role_policy, roles, sign, signatures

__all__ = [
    "audit",
    "bucket_policy",
    "checkpoint",
    "checkpoints",
    "jobs",
    "keygen",
    "profile",
    "publish",
    "report",
    "role_policy",
    "roles",
    "run",
    "set_alias",
    "sign",
    "signatures",
    "status",
    "validate",
]
