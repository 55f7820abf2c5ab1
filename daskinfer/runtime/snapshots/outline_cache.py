"""Outlines that were found before: kept on this machine, for every registry.

An outline decides what a model computes, and nobody signs it: it follows from the snapshot's files and from the code
that runs. So a job uses only what this machine has traced for this user. The copy in a registry shows what the
publisher's machine found; it is compared, and never used.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from pydantic import ValidationError

from daskinfer.errors import CheckpointError, RecipeError, StorageError
from daskinfer.graphs.task_request import load_task_request
from daskinfer.ids import sha256_of, shorten
from daskinfer.models.proofs.outlines import outline_key, trace_apart
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.fields import usual_task
from daskinfer.spec.outline import Outline
from daskinfer.spec.recipe.schema import Model
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.objects.filesystem import LARGEST_MANIFEST, read_record, replace_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.tensors.node_cache import private_folder

_log = logging.getLogger(__name__)


def find_outline(registry_url: str, request: TaskRequest, dtype: str) -> Outline:
    """Return the outline of a task on a checkpoint, traced only where this machine has not done so before.

    Parameters
    ----------
    registry_url
        Where a copy is left for others to compare with.
    request
        The task.
    dtype
        Precision of weights and activations.

    Raises
    ------
    CheckpointError
        Where the checkpoint cannot do the task.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> from daskinfer.testing.fixtures.jobs import make_job
    >>> request = TaskRequest("forward", ModelOptions(), "TestModel", {"config.json": b"{}"})
    >>> outline = make_job("labels.jsonl").outline
    >>> with patch.dict("os.environ", DASKINFER_CACHE="cache"), patch(f"{__name__}.trace_apart") as trace:
    ...     trace.return_value = outline
    ...     found = [find_outline("registry", request, "float32") for _ in range(2)]
    >>> found == [outline, outline], trace.call_count
    (True, 1)
    """
    name = f"{shorten(outline_key(request, dtype), 64)}.json"
    folder = private_folder("outlines")
    found = None if folder is None else _read(str(folder / name))
    if found is None:
        found = trace_apart(request, dtype)
        if folder is not None:
            _write(str(folder / name), found)
    _compare(join_url(registry_url, "outlines", name), found)
    return found


def trace_usual_task(registry: Registry, resolution: Resolution) -> None:
    """Find the outline of what a checkpoint is most likely asked for, so that its first job need not.

    What cannot be traced is left for the job to say.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=1)
    >>> with patch(f"{__name__}.find_outline") as find:
    ...     trace_usual_task(registry, registry.resolve("mini@prod"))
    >>> find.call_args.args[1].task
    'embed'
    """
    manifest = registry.manifest(resolution.snapshot)
    if manifest.entry is not None or manifest.code:
        return
    model = Model.model_validate({"checkpoint": resolution.reference, "task": usual_task(manifest.architecture)})
    request = load_task_request(registry, model, manifest)
    with suppress(CheckpointError, RecipeError):
        find_outline(registry.url, request, "float32")


def _compare(url: str, found: Outline) -> None:
    """Leave a copy of an outline for others, or tell that theirs is another one."""
    known = _read(url)
    if known is None:
        _write(url, found)
    elif known != found:
        _log.warning(
            "%s differs from what this machine finds, and is not used: it was changed, or its writer's machine computes "
            "in another way",
            url,
        )


def _write(url: str, outline: Outline) -> None:
    text = outline.model_dump_json().encode()
    # A place that may only be read is no reason to stop.
    with suppress(StorageError, OSError):
        replace_bytes(url, sha256_of(text).encode() + b"\n" + text)


def _read(url: str) -> Outline | None:
    """Return an outline that is there and undamaged."""
    try:
        digest, _, text = read_record(url, LARGEST_MANIFEST).partition(b"\n")
        return Outline.model_validate_json(text) if digest.decode(errors="replace") == sha256_of(text) else None
    except (FileNotFoundError, ValidationError, StorageError):
        return None
