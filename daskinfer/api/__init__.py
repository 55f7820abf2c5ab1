"""The one place that wires the floors together.

A notebook and an Airflow task call the same functions as the command line.
"""

from daskinfer.api.catalog import checkpoint, checkpoints, profile, publish, set_alias
from daskinfer.api.runs import jobs, report, run, status, validate
from daskinfer.api.stores import examine_store

__all__ = [
    "checkpoint",
    "checkpoints",
    "examine_store",
    "jobs",
    "profile",
    "publish",
    "report",
    "run",
    "set_alias",
    "status",
    "validate",
]
