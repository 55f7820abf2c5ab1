"""The base classes of all records that are stored."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all records: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DescribedSection(Section):
    """Base of what users write: what a key means is part of the schema and of error messages.

    The docstrings are read from the source when the class is made, which takes too long for every record.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)
