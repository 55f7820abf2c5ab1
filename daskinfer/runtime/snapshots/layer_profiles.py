"""What the layers of a checkpoint cost, counted and measured; measurements are kept with the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from pydantic import ValidationError

from daskinfer.errors import RecipeError, StorageError
from daskinfer.graphs.task_request import load_task_request
from daskinfer.ids import digest_of, make_nonce, shorten
from daskinfer.models.execution.devices import choose_dtype
from daskinfer.models.preprocessing.arrays import count_row_tokens
from daskinfer.models.proofs.outlines import outline_key
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import row_length
from daskinfer.models.versions import ATTENTION, versions
from daskinfer.planning.plan import TYPICAL_LENGTH
from daskinfer.planning.profile import make_profile
from daskinfer.runtime.cluster.device_description import describe_device
from daskinfer.runtime.snapshots.checkpoint_publisher import resolve_reference
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.source import digest_source
from daskinfer.spec.kernels import choose_kernels
from daskinfer.spec.measured import CheckpointProfile, LayerCost, MeasuredProfile
from daskinfer.spec.outline import InputArray, Outline
from daskinfer.spec.plan import DeviceShape, ModelProfile, Numerics
from daskinfer.spec.recipe.schema import Model
from daskinfer.spec.snapshot import Manifest, Resolution
from daskinfer.storage.objects.filesystem import read_record, replace_bytes
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.catalog import Registry, explain_loss
from daskinfer.storage.tensors.node_cache import load_tensors

Watch = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is done."""

_TOKENS = (256, 1024, 4096)
_ROWS = (1, 4, 16)


def profile_checkpoint(
    registry: Registry,
    model: Model,
    arrays: Sequence[InputArray],
    *,
    threads: int | None,
    measure: bool,
    fresh: bool,
    watch: Watch,
) -> CheckpointProfile:
    """Count what the layers of a checkpoint cost, and measure them on this machine's device.

    Parameters
    ----------
    registry
        Where the checkpoint is, or goes to on its first use.
    model
        The checkpoint and what it is asked to do.
    arrays
        `forward`: what the model's forward takes.
    threads
        Cores to measure with; by default all that this process has.
    measure
        Whether to measure; without it nothing of the weights is read.
    fresh
        Measure again what was measured before.
    watch
        Called with the progress.

    Raises
    ------
    DaskinferError
        There is no such checkpoint, or it cannot do the task.

    Examples
    --------
    >>> model = Model(checkpoint="mini@v1", task="forward")
    >>> profile_checkpoint(Registry("registry"), model, (), threads=None, measure=False, fresh=False, watch=print)
    Traceback (most recent call last):
        ...
    daskinfer.errors.RecipeError: the task forward needs the model's inputs by name...
    """
    if bool(arrays) != (model.task == "forward"):
        raise RecipeError(
            "the task forward needs the model's inputs by name" if not arrays else f"task {model.task} takes no inputs",
            hint="Say --task forward with --input NAME=dtype:shape, once for every argument of the model's forward.",
        )
    resolution = resolve_reference(registry, model.checkpoint, model.entry, watch, trust_code=model.trust_code)
    manifest = registry.manifest(resolution.snapshot)
    request = load_task_request(registry, model, manifest, arrays)
    device = describe_device()
    dtype, _ = choose_dtype(model.dtype, manifest.dtype, device)
    watch("finding the layers", 0, 1)
    outline = find_outline(registry.url, request, dtype)
    is_text = any(None in array.shape for array in outline.inputs)
    longest = row_length(request) if is_text else None
    profile = make_profile(manifest, outline, longest, None if is_text else count_row_tokens(outline.inputs))
    shapes = _choose_shapes(longest)
    counted = _count_costs(resolution, profile, outline, shapes[-1])
    if not measure:
        return counted
    kernels, _ = choose_kernels(model.kernels, dtype, device.kind, [device.onednn])
    numerics = Numerics(
        dtype=dtype,
        device=device.kind,
        attention=ATTENTION,
        kernels=kernels,
        threads=threads or device.threads,
        **versions(),
    )
    key = profile_key(resolution.snapshot, request, numerics, device)
    found = None if fresh else find_profile(registry.url, key)
    if found is not None:
        return counted.model_copy(update={"measured": found, "stored": True})
    measured = _measure(registry, manifest, request, outline, numerics, device, shapes, watch)
    # A registry that may only be read is no reason to fail.
    with suppress(StorageError, OSError):
        replace_bytes(_profile_url(registry.url, key), measured.model_dump_json().encode())
    return counted.model_copy(update={"measured": measured})


def profile_key(snapshot: str, request: TaskRequest, numerics: Numerics, device: DeviceShape) -> str:
    """Return the digest of everything that a measurement hangs on.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> from daskinfer.testing.fixtures.plans import make_plan, make_worker
    >>> request = TaskRequest("forward", ModelOptions(), "TestModel", {"config.json": b"{}"})
    >>> numerics, device = make_plan().numerics, make_worker("a").device
    >>> key = profile_key("sha256:ab", request, numerics, device)
    >>> key == profile_key("sha256:cd", request, numerics, device)
    False
    """
    outline = outline_key(request, numerics.dtype)
    return digest_of([snapshot, outline, numerics.model_dump(mode="json"), device.name])


def find_profile(registry_url: str, key: str) -> MeasuredProfile | None:
    """Return what was measured under a key of `profile_key`; None where nothing was.

    Examples
    --------
    >>> find_profile("registry", "sha256:" + "ab" * 32) is None
    True
    """
    try:
        return MeasuredProfile.model_validate_json(read_record(_profile_url(registry_url, key)))
    except (FileNotFoundError, ValidationError, StorageError):
        return None


def _measure(
    registry: Registry,
    manifest: Manifest,
    request: TaskRequest,
    outline: Outline,
    numerics: Numerics,
    device: DeviceShape,
    shapes: Sequence[tuple[int, int]],
    watch: Watch,
) -> MeasuredProfile:
    # Torch takes a second to import, and what was measured before needs none.
    from daskinfer.models.execution.measure import measure_layers

    read = partial(load_tensors, registry.url)
    lock = locks.take(registry, manifest.digest, f"profile-{make_nonce()}", purpose="profile")

    def tell(doing: str, done: int, total: int) -> None:
        lock.heartbeat()
        watch(doing, done, total)

    try:
        with explain_loss(registry, manifest.digest):
            layers = measure_layers(request, outline, manifest, numerics, read, shapes, tell)
    finally:
        lock.release()
    return MeasuredProfile(
        snapshot=manifest.digest,
        task=request.task,
        numerics=numerics,
        device=device,
        code=digest_source(),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        layers=layers,
    )


def _choose_shapes(longest: int | None) -> list[tuple[int, int]]:
    """Return rows and length of the microbatches to measure; the last one is the typical one."""
    if longest is None:
        return [(rows, 1) for rows in _ROWS]
    length = min(longest, TYPICAL_LENGTH)
    return [(tokens // length, length) for tokens in _TOKENS]


def _count_costs(
    resolution: Resolution, profile: ModelProfile, outline: Outline, typical: tuple[int, int]
) -> CheckpointProfile:
    rows, length = typical
    layers = tuple(
        LayerCost(
            name=layer.name,
            parameter_bytes=profile.stage_bytes(number, number + 1),
            flops=profile.work(number, number + 1, length) // length,
            cut=layer.cut,
            cut_bytes=sum(tensor.nbytes(rows, length) for tensor in layer.cut) / (rows * length),
        )
        for number, layer in enumerate(profile.layers)
    )
    return CheckpointProfile(
        resolution=resolution,
        architecture=outline.architecture,
        task=outline.task,
        dtype=outline.dtype,
        per="token" if profile.row_tokens is None else "row",
        rows=rows,
        length=length,
        parameter_bytes=profile.stage_bytes(0, len(layers)),
        flops=sum(layer.flops for layer in layers),
        layers=layers,
        uncut=outline.uncut,
        sharing=profile.sharing,
        left_out=outline.tell_left_out(),
    )


def _profile_url(registry_url: str, key: str) -> str:
    return join_url(registry_url, "profiles", f"{shorten(key, 64)}.json")
