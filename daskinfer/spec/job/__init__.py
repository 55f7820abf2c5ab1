"""A job as records."""

from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import OutputField

__all__ = ["CommitRecord", "OutputField"]
