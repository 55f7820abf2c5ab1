"""From a checkpoint to a snapshot: where the models and storage floors meet."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from daskinfer.errors import CheckpointError
from daskinfer.ids import make_nonce
from daskinfer.models.checkpoints.plainfiles import list_files, read_config
from daskinfer.models.entry import find_entry
from daskinfer.models.remotecode import check_trust
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.objects.urls import absolute_url, is_local
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import CheckpointSource, GroupSource, Origin, Watch, publish
from daskinfer.storage.registry.publishing.sources import identify_source, recall_source, remember_source
from daskinfer.storage.registry.signatures import require_signatures
from daskinfer.storage.tensors.folder import Folder

if TYPE_CHECKING:
    from daskinfer.models.checkpoints.checkpoint import CheckpointFiles
    from daskinfer.models.checkpoints.tensorfiles import GroupFile

_LONGEST_NAME = 100


def publish_checkpoint(
    registry: Registry,
    name: str,
    source: str | None = None,
    *,
    alias: str | None = None,
    entry: str | None = None,
    dtype: str | None = None,
    reference: bool = False,
    trust_code: bool = False,
    watch: Watch | None = None,
) -> Resolution:
    """Convert a checkpoint and publish it; content that is there already is not stored again.

    Parameters
    ----------
    registry
        Where to.
    name
        Model name.
    source
        A directory, an fsspec URL of one, or a published checkpoint (`minilm@v1`). Without it the entry's own weights
        are published.
    alias
        Alias to point at it.
    entry
        `package.module:function` that builds the model.
    dtype
        Convert floating-point tensors to float32, bfloat16 or float16.
    reference
        Leave the bytes of whatever needs no conversion where they are.
    trust_code
        Publish and run the code that comes with the checkpoint.
    watch
        Called with the progress.

    Raises
    ------
    CheckpointError
        It is no checkpoint that can be published.

    Examples
    --------
    >>> publish_checkpoint(Registry("registry"), "tiny")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: nothing to publish...
    """
    if source is None and entry is None:
        raise CheckpointError("nothing to publish", hint="Give a directory, or the entry that builds the model.")
    if source is not None and "@" in source and not _is_folder(source):
        if entry is not None or reference:
            raise CheckpointError(
                f"{source} is a published checkpoint: it has its own code, and no files to refer to",
                hint="Leave out the entry and the reference, or publish from a directory.",
            )
        return _publish_again(registry, name, source, alias, dtype, trust_code, watch)
    folder = None if source is None else Folder(source)
    if folder is not None and entry is None:
        read_config(folder, list_files(folder))  # what is no checkpoint is refused at once
    # Torch takes seconds to import, and a driver that finds the checkpoint published needs none.
    from daskinfer.models.checkpoints.checkpoint import inspect_checkpoint, inspect_entry

    if folder is None:
        # What its functions compute can hang on more than one file, so it is never taken as unchanged.
        found = inspect_entry(entry or "", dtype=dtype)
        return publish(registry, name, _as_source(found, reference=False), alias, watch)
    code = None if entry is None else find_entry(entry).source
    key = identify_source(name, folder, code, dtype)
    if entry is None:
        found = inspect_checkpoint(folder, dtype=dtype, trust_code=trust_code)
    else:
        found = inspect_entry(entry, folder, dtype=dtype)
    parent = None if dtype is None else recall_source(registry, identify_source(name, folder, code, None))
    origin = None if parent is None else parent.snapshot
    converted = _as_source(found, reference, origin, trust_code)
    if entry is None and dtype is None and Path(source or "").is_dir() and not found.has_code:
        converted = replace(converted, confirm=partial(_confirm, found, Path(source or "")))
    resolution = publish(registry, name, converted, alias, watch)
    remember_source(registry, key, resolution)
    return resolution


def _confirm(found: CheckpointFiles, directory: Path) -> dict[str, str]:
    from daskinfer.models.proofs.publish_proof import compare_with_transformers

    return {"proof": compare_with_transformers(found, directory)}


def resolve_checkpoint(recipe: Recipe) -> Resolution:
    """Return what the recipe's checkpoint means now, publishing a directory on its first use.

    Raises
    ------
    CheckpointError
        There is no such checkpoint, or one of the recipe's keys has not signed it.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import Input, Model, Output
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> model = Model(checkpoint="mini@prod", registry=make_registry("registry", versions=2).url)
    >>> recipe = Recipe(daskinfer=1, name="demo", model=model, input=Input(url="a.jsonl"), output=Output(url="b.jsonl"))
    >>> resolve_checkpoint(recipe).version
    2
    """
    model, registry = recipe.model, Registry(recipe.registry_url)
    found = resolve_reference(registry, model.checkpoint, model.entry, trust_code=model.trust_code)
    require_signatures(registry, found.snapshot, model.signed_by)
    return found


def resolve_reference(
    registry: Registry,
    reference: str,
    entry: str | None = None,
    watch: Watch | None = None,
    *,
    trust_code: bool = False,
) -> Resolution:
    """Return what a published checkpoint or a directory means now, publishing a directory on its first use.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> resolve_reference(make_registry("registry", versions=2), "mini@v1").version
    1
    """
    if not _is_folder(reference):
        return registry.resolve(reference)
    folder = Folder(reference)
    name = name_after(folder.url)
    code = None if entry is None else find_entry(entry).source
    known = recall_source(registry, identify_source(name, folder, code, None))
    return known or publish_checkpoint(registry, name, folder.url, entry=entry, trust_code=trust_code, watch=watch)


def name_after(url: str) -> str:
    """Return the name under which a folder is published: its own, without what no checkpoint's name may hold.

    Examples
    --------
    >>> name_after("/models/my model (new)")
    'my-model-new'
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2]).lstrip("._-")
    return name[:_LONGEST_NAME].rstrip("-") or "checkpoint"


def _is_folder(reference: str) -> bool:
    if not is_local(reference) or Path(absolute_url(reference)).is_dir():
        return True
    return "://" in reference or ("/" in reference and "@" not in reference)


def _publish_again(
    registry: Registry,
    name: str,
    reference: str,
    alias: str | None,
    dtype: str | None,
    trust_code: bool,
    watch: Watch | None,
) -> Resolution:
    from daskinfer.models.checkpoints.checkpoint import inspect_snapshot

    snapshot = registry.resolve(reference).snapshot
    lock = locks.take(registry, snapshot, f"publish-{make_nonce()}", purpose="publish")
    try:
        manifest = registry.manifest(snapshot)
        check_trust(manifest, trust_code)
        found = inspect_snapshot(manifest, registry.files(manifest), Folder(registry.url), dtype=dtype)
        return publish(registry, name, _as_source(found, False, snapshot, trust_code), alias, watch)
    finally:
        lock.release()


def _as_source(
    found: CheckpointFiles, reference: bool, parent: str | None = None, trust_code: bool = False
) -> CheckpointSource:
    origins = {group.name: _find_origins(group) if reference else None for group in found.groups}
    provenance = dict(found.provenance)
    if reference:
        kept = sum(places is not None for places in origins.values())
        provenance["reference"] = f"{kept} of {len(origins)} layer groups stay in the checkpoint's own files"
        if kept < len(origins):
            provenance["reference"] += f", {len(origins) - kept} need conversion and are copied"
    return CheckpointSource(
        architecture=found.architecture,
        dtype=found.dtype,
        files=found.files,
        groups=[GroupSource(group.name, group.blob, group.size, origins[group.name]) for group in found.groups],
        tied=found.tied,
        entry=found.entry,
        trust_code=trust_code,
        parent=parent,
        provenance=provenance,
    )


def _find_origins(group: GroupFile) -> dict[str, Origin] | None:
    """Return where the checkpoint's own files hold the group; None where any of it is converted."""
    stored = group.stored
    if stored is None:
        return None
    return {name: Origin(f"{one.folder.url}/{one.file}", one.begin, one.end) for name, one in stored.items()}
