"""Checkpoints: publish, list, look at, measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.runtime.snapshots.layer_profiles import profile_checkpoint
from daskinfer.runtime.snapshots.outline_cache import trace_usual_task
from daskinfer.spec.measured import CheckpointProfile
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import Model, ModelOptions
from daskinfer.spec.registry.listing import AliasRow, CheckpointDetail, CheckpointRow, VersionRow
from daskinfer.spec.snapshot import Resolution
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import Watch


def publish(
    name: str,
    source: str | None = None,
    *,
    registry: str,
    alias: str | None = None,
    entry: str | None = None,
    dtype: str | None = None,
    reference: bool = False,
    trust_code: bool = False,
    watch: Watch | None = None,
) -> Resolution:
    """Publish a checkpoint, and point an alias at it; the same content is stored once.

    Parameters
    ----------
    name
        Model name.
    source
        A directory, an fsspec URL of one, or a published checkpoint (`minilm@v1`). Without it the entry's own weights
        are published.
    registry
        URL of the registry.
    alias
        Alias to point at it.
    entry
        `package.module:function` that builds a model of your own.
    dtype
        Convert floating-point tensors to float32, bfloat16 or float16.
    reference
        Copy nothing that needs no conversion: the snapshot refers to the directory's own files.
    trust_code
        Publish the code that comes with the checkpoint with it, and run it.
    watch
        Called with what is being done, and how many of how many bytes are done.

    Raises
    ------
    CheckpointError
        It cannot be published, or a name is not allowed.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = make_tiny_bert(Path("tiny"), layers=1)
    >>> publish("tiny", str(folder), registry="registry", alias="prod").version
    1
    >>> publish("tiny", str(folder), registry="registry").version
    1
    """
    found = Registry(registry)
    resolution = publish_checkpoint(
        found,
        name,
        source,
        alias=alias,
        entry=entry,
        dtype=dtype,
        reference=reference,
        trust_code=trust_code,
        watch=watch,
    )
    trace_usual_task(found, resolution)
    return resolution


def checkpoints(registry: str) -> list[CheckpointRow]:
    """Return all checkpoints of a registry, a row each.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> registry = make_registry("registry", versions=3).url
    >>> [(row.name, row.versions, row.latest.number, row.aliases[0].name) for row in checkpoints(registry)]
    [('mini', 3, 3, 'prod')]
    """
    found = Registry(registry)
    return [
        CheckpointRow(
            name=name,
            versions=len(versions),
            latest=next((row for row in reversed(versions) if row.yanked is None), versions[-1]),
            yanked=tuple(row.number for row in versions if row.yanked is not None),
            aliases=_aliases(found, name),
        )
        for name in found.names()
        if (versions := _versions(found, name))
    ]


def checkpoint(reference: str, registry: str) -> CheckpointDetail:
    """Return what a checkpoint reference means, a yanked version too, and what goes by its name.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.checkpoints import make_registry
    >>> detail = checkpoint("mini@prod", make_registry("registry").url)
    >>> detail.resolution.version, detail.architecture, detail.groups
    (3, 'TestModel', {'embeddings': 696, 'layer.0': 696, 'layer.1': 696})
    """
    found = Registry(registry)
    resolution = found.resolve(reference, yanked=True)
    manifest = found.manifest(resolution.snapshot)
    return CheckpointDetail(
        resolution=resolution,
        architecture=manifest.architecture,
        dtype=manifest.dtype,
        size=sum(file.size for file in manifest.files) + sum(group.size for group in manifest.groups),
        groups={group.name: group.size for group in manifest.groups},
        files=tuple(file.path for file in manifest.files),
        provenance=manifest.provenance,
        versions=_versions(found, resolution.name),
        aliases=_aliases(found, resolution.name),
    )


def profile(
    checkpoint: str,
    *,
    registry: str,
    task: Literal["embed", "classify", "score", "forward"] = "embed",
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
    options: ModelOptions | None = None,
    entry: str | None = None,
    trust_code: bool = False,
    inputs: Sequence[InputArray] = (),
    threads: int | None = None,
    measure: bool = True,
    fresh: bool = False,
    watch: Watch | None = None,
) -> CheckpointProfile:
    """Count what every layer of a checkpoint costs, and measure it on this machine's device.

    Parameters
    ----------
    checkpoint
        `minilm@prod`, or a directory or the URL of one, which is published on its first use.
    registry
        URL of the registry; measurements are kept there.
    task, dtype, options, entry, trust_code
        As in a recipe's `model`.
    inputs
        `forward`: the arrays that the model's forward takes.
    threads
        Cores to measure with; by default all that this process has.
    measure
        Whether to measure; without it nothing of the weights is read.
    fresh
        Measure again what was measured before.
    watch
        Called with what is being done, and how much of how much is done.

    Raises
    ------
    DaskinferError
        There is no such checkpoint, or it cannot do the task.

    Examples
    --------
    >>> from pathlib import Path
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = make_tiny_bert(Path("tiny"), layers=2)
    >>> found = profile(str(folder), registry="registry", measure=False)
    >>> [layer.name for layer in found.layers], found.per
    (['encoder.layer.0', 'encoder.layer.1'], 'token')
    """
    model = Model(
        checkpoint=checkpoint,
        task=task,
        dtype=dtype,
        options=options or ModelOptions(),
        entry=entry,
        trust_code=trust_code,
    )
    return profile_checkpoint(
        Registry(registry),
        model,
        inputs,
        threads=threads,
        measure=measure,
        fresh=fresh,
        watch=watch or (lambda doing, done, total: None),
    )


def _versions(registry: Registry, name: str) -> tuple[VersionRow, ...]:
    return tuple(
        VersionRow(number=found.number, snapshot=found.snapshot, yanked=found.yanked)
        for found in registry.versions(name)
    )


def _aliases(registry: Registry, name: str) -> tuple[AliasRow, ...]:
    return tuple(
        AliasRow(name=alias, snapshot=head.snapshot, version=head.version)
        for alias, head in sorted(registry.aliases(name).items())
        if head.snapshot is not None
    )
