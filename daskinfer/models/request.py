"""What is asked of a model: the task, and everything of the snapshot that decides how it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from daskinfer.ids import parse_json
from daskinfer.models.remotecode import check_trust
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import Model, ModelOptions
from daskinfer.spec.snapshot import EntryPoint, Manifest


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

    def with_arrays(self, arrays: Sequence[InputArray]) -> TaskRequest:
        """Return the same request for arrays of the input, which only `forward` takes."""
        return replace(self, arrays=tuple(arrays)) if self.task == "forward" else self


def make_request(
    model: Model, manifest: Manifest, files: Mapping[str, bytes], arrays: Sequence[InputArray]
) -> TaskRequest:
    """Return what a recipe's section `model` asks of a snapshot; `arrays` are the inputs of `forward`.

    Raises
    ------
    CheckpointError
        Where the snapshot holds code that the recipe does not trust.

    Examples
    --------
    >>> manifest = Manifest(model="tiny", architecture="BertModel", dtype="float32", files=[], groups=[])
    >>> request = make_request(Model(checkpoint="tiny@prod"), manifest, {"config.json": b'{"hidden_size": 32}'}, [])
    >>> request.task, request.architecture, request.config
    ('embed', 'BertModel', {'hidden_size': 32})
    """
    check_trust(manifest, model.trust_code)
    request = TaskRequest(model.task, model.options, manifest.architecture, files, manifest.entry)
    return request.with_arrays(arrays)
