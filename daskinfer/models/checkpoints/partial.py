"""Checkpoints that lack whole parts of their class, such as a pooler: published where a task can do without them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from daskinfer.errors import DaskinferError
from daskinfer.models.request import TaskRequest
from daskinfer.models.splitting.outlining import tensors_read
from daskinfer.models.tasks.build import build_task
from daskinfer.spec.recipe.schema import ModelOptions

# What needs least comes first. Planning refuses each task by its own outline.
_TASKS = (
    ("embed", ModelOptions()),
    ("embed", ModelOptions(pooling="mean")),
    ("score", ModelOptions()),
    ("classify", ModelOptions()),
)


def find_possible_task(architecture: str, files: Mapping[str, bytes], missing: Collection[str]) -> str | None:
    """Return a task that reads none of the missing tensors; None where there is none.

    Parameters
    ----------
    architecture
        Class of the checkpoint.
    files
        Its plain files.
    missing
        Names in the snapshot of the tensors that it lacks.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> files = ask_tiny("embed").files
    >>> find_possible_task("BertModel", files, ["pooler.dense.weight"])
    'embed'
    >>> find_possible_task("BertModel", files, ["embeddings.word_embeddings.weight"]) is None
    True
    """
    lacking = frozenset(missing)
    for task, options in _TASKS:
        with suppress(DaskinferError):
            module = build_task(TaskRequest(task, options, architecture, files), "float32")
            if lacking.isdisjoint(tensors_read(module, module.inputs, "float32")):
                return task
    return None
