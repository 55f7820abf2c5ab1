"""The fixed settings of a run, and the state that earlier runs left."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.workers.assignment_table import WorkerRequirements
from daskinfer.spec.job.poison import PoisonRecord
from daskinfer.spec.plan import Plan
from daskinfer.spec.recipe.schema import Consistency


@dataclass(frozen=True, slots=True)
class RunRules:
    """What a run goes by from its start to its end."""

    plan: Plan
    """Stages, replicas and window."""
    consistency: Consistency
    """The recipe's."""
    source: str
    """Digest of the code that every worker must acknowledge beside the snapshot."""
    epoch: int
    """This driver's."""
    requirements: WorkerRequirements
    """What is wanted of workers."""
    limits: Limits
    """When to give up."""


@dataclass(frozen=True, slots=True)
class EarlierWork:
    """What earlier runs of the job have left."""

    partitions: int
    """How many the input has."""
    committed: MutableMapping[int, str]
    """Those that are committed -> the snapshot that they are on; kept up to date."""
    rejects: int = 0
    """Rows that are quarantined in them."""
    poison: Iterable[PoisonRecord] = ()
    """What is known of rows that break whoever computes them."""
