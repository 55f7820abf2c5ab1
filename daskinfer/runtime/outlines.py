"""Outlines that were found before: kept with the registry, and on this machine for every registry."""

from __future__ import annotations

from contextlib import suppress

from pydantic import ValidationError

from daskinfer.errors import CheckpointError, RecipeError, StorageError
from daskinfer.ids import sha256_of, shorten
from daskinfer.models.outlines import outline_key, trace_apart
from daskinfer.models.tasks.fields import usual_task
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.spec.outline import Outline
from daskinfer.spec.recipe import ModelOptions
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.filesystem import join_url, read_bytes, replace_bytes
from daskinfer.storage.nodecache import cache_folder
from daskinfer.storage.registry.catalog import Registry


def find_outline(registry_url: str, request: TaskRequest, dtype: str) -> Outline:
    """Return the outline of a task on a checkpoint, traced only where nobody has done so before.

    Parameters
    ----------
    registry_url
        Where outlines are kept for everyone.
    request
        The task.
    dtype
        Precision of weights and activations.

    Raises
    ------
    CheckpointError
        Where the checkpoint cannot do the task.
    """
    name = f"{shorten(outline_key(request, dtype), 64)}.json"
    places = [join_url(registry_url, "outlines", name)]
    with suppress(RuntimeError):  # there may be no home folder
        places.append(join_url(str(cache_folder()), "outlines", name))
    known = {place: _read(place) for place in places}
    found = next(filter(None, known.values()), None) or trace_apart(request, dtype)
    for place, outline in known.items():
        if outline is None:
            # A registry that may only be read is no reason to stop.
            with suppress(StorageError, OSError):
                replace_bytes(place, _encode(found))
    return found


def trace_usual_task(registry: Registry, resolution: Resolution) -> None:
    """Find the outline of what a checkpoint is most likely asked for, so that its first job need not.

    What cannot be traced is left for the job to say.
    """
    manifest = registry.manifest(resolution.snapshot)
    if manifest.entry is not None or manifest.code:
        return
    files = {file.path: registry.file(manifest, file.path) for file in manifest.files}
    request = TaskRequest(usual_task(manifest.architecture), ModelOptions(), manifest.architecture, files)
    with suppress(CheckpointError, RecipeError):
        find_outline(registry.url, request, "float32")


def _encode(outline: Outline) -> bytes:
    text = outline.model_dump_json().encode()
    return sha256_of(text).encode() + b"\n" + text


def _read(url: str) -> Outline | None:
    """Return an outline that is there and undamaged."""
    try:
        digest, _, text = read_bytes(url).partition(b"\n")
        return Outline.model_validate_json(text) if digest.decode(errors="replace") == sha256_of(text) else None
    except (FileNotFoundError, ValidationError, StorageError):
        return None
