"""What is asked of a model: the task, and everything of the snapshot that decides how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from daskinfer.ids import parse_json
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.spec.snapshot import EntryPoint


@dataclass(frozen=True)
class TaskRequest:
    """A task on a checkpoint."""

    task: str
    """embed, classify, score or forward."""
    options: ModelOptions
    """The recipe's `model.options`."""
    architecture: str
    """Class name of the checkpoint, e.g. BertForMaskedLM; the function's name for a user's own model."""
    files: Mapping[str, bytes]
    """The snapshot's plain files: config.json, tokenizer and processor files."""
    entry: EntryPoint | None = None
    """The user's own code that builds the model."""
    arrays: tuple[InputArray, ...] = field(default=())
    """`forward`: arrays of the input, under the names that the model's forward takes them by."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Content of config.json; empty for a user's own model without one."""
        config: Mapping[str, Any] = parse_json(self.files.get("config.json", b"{}"))
        return config
