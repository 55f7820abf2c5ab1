"""What a model costs, from its snapshot's manifest and its outline."""

from __future__ import annotations

from math import prod

from daskinfer.errors import CheckpointError
from daskinfer.spec.outline import ITEM_BYTES, Outline, Sharing
from daskinfer.spec.plan import LayerProfile, ModelProfile
from daskinfer.spec.snapshot import Manifest

_WHOLE_NUMBERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def make_profile(
    manifest: Manifest, outline: Outline, max_length: int | None, row_tokens: int | None = None
) -> ModelProfile:
    """Return the model as planning sees it, with only the tensors that the task needs.

    Parameters
    ----------
    manifest
        The snapshot.
    outline
        The model's outline for the task, in the job's precision.
    max_length
        Longest row that the model accepts, in tokens; None without a limit.
    row_tokens
        What a row counts as, where all have one shape.

    Raises
    ------
    CheckpointError
        The snapshot lacks a tensor that the task needs.

    Examples
    --------
    >>> from daskinfer.spec.outline import LayerOutline
    >>> from daskinfer.spec.snapshot import LayerGroup, TensorEntry
    >>> weight = TensorEntry(name="w", blake3="0" * 64, dtype="F32", shape=(4, 2), begin=0, end=32)
    >>> group = LayerGroup(name="layer.0", size=32, sha256="0" * 64, blob="blobs/0", tensors=[weight])
    >>> manifest = Manifest(model="tiny", architecture="BertModel", dtype="float32", files=[], groups=[group])
    >>> layer = LayerOutline(name="layer.0", units=(), tensors=["w"], begin=0, end=0, flops=(16, 0), cut=())
    >>> about = {"architecture": "BertModel", "task": "embed", "inputs": [], "events": [], "shared": [], "outputs": {}}
    >>> make_profile(manifest, Outline(dtype="bfloat16", layers=[layer], **about), max_length=512).sizes
    {'w': 16}
    """
    item = ITEM_BYTES[outline.dtype]
    tensors = [tensor for group in manifest.groups for tensor in group.tensors]
    sizes = {tensor.name: prod(tensor.shape) * _WHOLE_NUMBERS.get(tensor.dtype, item) for tensor in tensors}
    stored = {tensor.name: tensor.end - tensor.begin for tensor in tensors}

    def find(names: tuple[str, ...]) -> tuple[str, ...]:
        stored = tuple(manifest.tied.get(name, name) for name in names)
        absent = [name for name in stored if name not in sizes]
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise CheckpointError(
                f"{manifest.model} ({manifest.architecture}) has no tensor {absent[0]}{more}, needed to {outline.task}",
                hint="Use a checkpoint that was trained for this task, or another task.",
            )
        return stored

    return ModelProfile(
        architecture=outline.architecture,
        max_length=max_length,
        row_tokens=row_tokens,
        layers=tuple(
            LayerProfile(
                name=layer.name,
                tensors=find(layer.tensors),
                flops=layer.flops,
                cut=tuple(item.tensor for item in layer.cut),
            )
            for layer in outline.layers
        ),
        shared=find(outline.shared),
        sizes=sizes,
        stored={name: size for name, size in stored.items() if size != sizes[name]},
        uncut=outline.uncut,
        sharing=outline.sharing or Sharing(),
    )
