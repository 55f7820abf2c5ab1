"""Every error daskinfer raises on purpose, and the exit code each one ends a command with.

::

    DaskinferError                1  the job failed; the same command resumes it
    ├── UsageError                2  what the user asked for is wrong
    │   ├── RecipeError              the recipe does not parse or validate
    │   ├── InputError               no such data, no such column, an empty input
    │   ├── CheckpointError          unknown name, alias, version; not a usable checkpoint
    │   │   └── YankedVersion           the version was yanked
    │   ├── OutputOwned              the output belongs to another job
    │   └── Incomparable             two outputs are not of the same rows and columns
    ├── PlanError                 3  the plan cannot fit the cluster
    ├── RejectBudgetExceeded      4  more rows were quarantined than the recipe allows
    ├── Interrupted             130  stopped by the user
    │   └── Cancelled                by somebody else, with `daskinfer cancel`
    ├── StorageError              1  the store refused, is full, or is not safe to use
    │   ├── StorageRefused           the store is away or overloaded for the moment
    │   ├── Conflict                 another writer took the slot first
    │   └── NotAllowed               a policy or the store's own rights forbid it
    ├── IntegrityError            1  bytes are not what they were published or written as
    │   ├── CorruptBlob              a checkpoint blob does not match its manifest
    │   ├── CorruptActivation        an activation chunk is damaged, swapped or missing
    │   └── SnapshotSkew             a value was computed on another snapshot
    ├── SnapshotGone              1  the locked snapshot was taken away
    ├── DeviceFailed              1  a worker's device failed, and the worker is of no more use
    ├── JobBusy                   1  another live driver runs this job
    ├── ClaimLost                 1  another member of the job computes these partitions by now
    └── JobFailed                 1  the work itself failed
        ├── NotFinite                the model returned NaN or infinity, and `errors.nan` is `stop`
        └── ClusterLost              the Dask scheduler is gone
"""

from __future__ import annotations

from typing import ClassVar

from daskinfer.redaction import conceal


class DaskinferError(Exception):
    """Base of all deliberate errors.

    Parameters
    ----------
    message
        What is wrong and where, in one or more lines.
    hint
        What to do about it, in one line.

    Examples
    --------
    >>> error = CheckpointError("minilm has no alias prod", hint="It has: test.")
    >>> print(error)
    minilm has no alias prod
    It has: test.
    >>> error.exit_code, isinstance(error, UsageError)
    (2, True)
    """

    exit_code: ClassVar[int] = 1
    recurs: ClassVar[bool] = False
    """Whether the same command, on the same rows, ends the same way again."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        # What a store or a user gave may hold a URL with its password.
        message, hint = conceal(message), None if hint is None else conceal(hint)
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(DaskinferError):
    """The command, the recipe or what it names is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe does not parse or does not validate."""


class InputError(UsageError):
    """The input has no such files, rows or columns."""


class CheckpointError(UsageError):
    """No such checkpoint, version or alias, or a directory that cannot be published."""


class YankedVersion(CheckpointError):
    """The version was yanked: no name leads to it any more."""


class OutputOwned(UsageError):
    """The output location holds the work of another job."""


class Incomparable(UsageError):
    """Two outputs that are not finished, or not of the same rows and columns."""


class PlanError(DaskinferError):
    """The job cannot fit on the workers there are."""

    exit_code = 3


class RejectBudgetExceeded(DaskinferError):
    """More rows were quarantined than `errors.max_rows` allows."""

    exit_code = 4
    recurs = True


class Interrupted(DaskinferError):
    """The user stopped the run; everything committed stays."""

    exit_code = 130


class Cancelled(Interrupted):
    """Somebody asked the run to stop, in the job's control log; everything committed stays."""


class StorageError(DaskinferError):
    """A store refused an operation, ran out of space, or is unsafe to use."""


class StorageRefused(StorageError):
    """A store is out of reach, overloaded or timed out: the same call may succeed later."""


class Conflict(StorageError):
    """Another writer created the object first."""


class NotAllowed(StorageError):
    """Whoever asks has no right to do this, by a policy's word or the store's; nothing was done."""


class IntegrityError(DaskinferError):
    """Bytes differ from what their digest says."""


class CorruptBlob(IntegrityError):
    """A checkpoint blob is missing, short or differs from its manifest."""


class CorruptActivation(IntegrityError):
    """An activation is missing, short, damaged, or belongs elsewhere."""


class SnapshotSkew(IntegrityError):
    """A value was computed on a snapshot other than the job's."""


class SnapshotGone(DaskinferError):
    """The locked snapshot was condemned or deleted."""


class DeviceFailed(DaskinferError):
    """A device failed in a way that its process does not recover from."""

    worker: str = ""
    """Address of the worker whose device it is."""


class JobBusy(DaskinferError):
    """A live driver already runs this job."""


class ClaimLost(DaskinferError):
    """Another member of the job has taken partitions over; what was computed of them is not to be written."""


class JobFailed(DaskinferError):
    """The work failed in a way that retrying did not solve."""


class NotFinite(JobFailed):
    """The model returned NaN or infinity for a row, and the recipe wants to stop there."""

    recurs = True


class ClusterLost(JobFailed):
    """The connection to the Dask scheduler is gone, and with it everything that was under way."""


class MissingEvent(UserWarning):
    """Something was decided about a registry, and the event that says so could not be written."""
