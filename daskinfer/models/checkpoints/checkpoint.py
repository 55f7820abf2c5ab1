"""A checkpoint, checked and cut into layer groups for publishing: a transformers directory, a user's own module, or
a snapshot in another precision.

Tensors get the names that a stage's modules have, so that a stage reads its groups as they are: no conversion at load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from daskinfer.errors import CheckpointError
from daskinfer.ids import parse_json
from daskinfer.models.architecture import build_model, choose_class
from daskinfer.models.checkpoints.conversion import as_tensor, cast, map_tensors, precision_of
from daskinfer.models.checkpoints.grouping import group_tensors, refuse_missing, refuse_odd_layers
from daskinfer.models.checkpoints.leftovers import refuse_changes
from daskinfer.models.checkpoints.partial import find_possible_task
from daskinfer.models.checkpoints.plainfiles import (
    list_files,
    read_config,
    read_plain_files,
    read_sentence_weights,
    refuse_beside,
)
from daskinfer.models.checkpoints.tensorfiles import GroupFile, StoredTensor, as_stored, read_weights
from daskinfer.models.entry import check_builds, find_entry, load_entry
from daskinfer.models.folder import Folder, LocalFolder
from daskinfer.models.preprocessing.tokenizer_conversion import convert_tokenizer
from daskinfer.models.remotecode import read_code
from daskinfer.spec.snapshot import EntryPoint, Manifest

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_CODES = {name: code for code, name in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Everything that publishing a checkpoint stores."""

    architecture: str
    """Class name, e.g. BertModel."""
    dtype: str
    """Precision of most of the weights."""
    files: Mapping[str, bytes]
    """Configuration, tokenizer and processor files by name."""
    groups: tuple[GroupFile, ...]
    """Weights, in model order."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Name of a tensor that is stored under another name -> that name."""
    entry: EntryPoint | None = None
    """The user's own code that builds the model."""
    missing: tuple[str, ...] = ()
    """Tensors of whole parts that the checkpoint lacks: planning refuses every task that needs one."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where it came from and what was changed."""

    @property
    def has_code(self) -> bool:
        """Whether code comes with it."""
        return any(path.endswith(".py") for path in self.files)


def inspect_checkpoint(source: Path | Folder, *, dtype: str | None = None, trust_code: bool = False) -> CheckpointFiles:
    """Check a transformers checkpoint and return what there is to publish.

    Weights are not read yet, only the headers of their files; no pickled file is opened, and no code is run that is
    not trusted.

    Parameters
    ----------
    source
        A directory, or a folder of any store.
    dtype
        Convert floating-point tensors to float32, bfloat16 or float16; those that transformers keeps in float32 stay.
    trust_code
        Publish and run the code that comes with the checkpoint, where its configuration names any.

    Raises
    ------
    CheckpointError
        If it is not a whole safetensors checkpoint of an architecture that transformers knows.

    Examples
    --------
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> found = inspect_checkpoint(make_tiny_bert(Path("tiny"), layers=2), dtype="bfloat16")
    >>> [group.name for group in found.groups], found.dtype
    (['embeddings', 'encoder.layer.0', 'encoder.layer.1', 'pooler'], 'bfloat16')
    """
    folder = _open_folder(source)
    names = folder.names()
    config = read_config(folder, names)
    _refuse_code(folder.url, config, trust_code)
    refuse_beside(folder.url, names, config)
    code = read_code(folder, names, config)
    files = read_plain_files(folder, names) | code
    class_name, note = _choose_class(folder.url, config, files)
    model, architecture = _build(folder.url, config, class_name, files)
    stored = read_weights(folder, config.get("transformers_weights"))
    mapped = map_tensors(model, stored)
    refuse_changes(model, mapped, stored, folder.url)
    grouped = group_tensors(model, mapped.tensors, folder.url)
    provenance = {"source": folder.url, "format": "transformers safetensors"}
    told = {
        "class": [note] if note else [],
        "code": list(code),
        "dropped": [*mapped.ignored, *mapped.unexpected],
        "missing": grouped.missing,
        "untied": grouped.untied,
    }
    provenance |= {name: ", ".join(values) for name, values in told.items() if values}
    if getattr(model, "main_input_name", "") == "input_ids":
        converted = convert_tokenizer(folder, names, config)
        if "tokenizer.json" in converted and converted["tokenizer.json"] != files.get("tokenizer.json"):
            made = "completed by its other files" if "tokenizer.json" in files else "built from the vocabulary"
            provenance["tokenizer.json"] = f"{made} by transformers"
        files |= converted
    if grouped.missing and find_possible_task(architecture, files, grouped.missing) is None:
        refuse_missing(grouped.missing, folder.url, architecture)
    found = CheckpointFiles(
        architecture,
        _main_dtype(folder.url, grouped.groups),
        files,
        (*grouped.groups, *read_sentence_weights(folder, files)),
        grouped.tied,
        missing=grouped.missing,
        provenance=provenance,
    )
    return found if dtype is None else _convert(found, model, dtype)


def inspect_entry(function: str, source: Path | Folder | None = None, *, dtype: str | None = None) -> CheckpointFiles:
    """Call a user's function and return what there is to publish of the module that it builds.

    Parameters
    ----------
    function
        `package.module:function`, called without arguments.
    source
        Where its weights are, in safetensors files, under the names of its `state_dict`; without it the module's own
        weights are published.
    dtype
        Convert floating-point tensors.

    Raises
    ------
    CheckpointError
        Where the function does not give a module, or the weights are not the module's.

    Examples
    --------
    >>> found = inspect_entry("daskinfer.testing.models.ownmodels:make_own")
    >>> found.architecture, found.entry.function
    ('OwnModel', 'daskinfer.testing.models.ownmodels:make_own')
    """
    entry = find_entry(function)
    # With real weights: modules that share one lose that on the meta device.
    model = load_entry(entry, weights=True)
    check_builds(entry, model)
    provenance = {"source": function, "format": "torch.nn.Module"}
    files: dict[str, bytes] = {}
    state: Mapping[str, Any] = model.state_dict()
    if source is None:
        where = f"model.entry {function}"
        tensors = {name: as_tensor(value, f"{where}: {name}") for name, value in state.items()}
    else:
        folder = _open_folder(source)
        where = folder.url
        refuse_beside(where, folder.names(), {})
        stored = read_weights(folder)
        tensors = {name: as_stored(tensor) for name, tensor in stored.items() if name in state}
        files = read_plain_files(folder, folder.names())
        provenance |= {"source": where, "format": "safetensors"}
        refuse_odd_layers(model, stored.keys() - state.keys(), where)
        if dropped := sorted(stored.keys() - state.keys()):
            provenance["dropped"] = ", ".join(dropped)
    grouped = group_tensors(model, tensors, where)
    refuse_missing(grouped.missing, where, type(model).__name__)
    if grouped.untied:
        provenance["untied"] = ", ".join(grouped.untied)
    found = CheckpointFiles(
        type(model).__name__,
        _main_dtype(where, grouped.groups),
        files,
        grouped.groups,
        grouped.tied,
        entry,
        provenance=provenance,
    )
    return found if dtype is None else _convert(found, None, dtype)


def inspect_snapshot(
    manifest: Manifest, files: Mapping[str, bytes], blobs: Folder, *, dtype: str | None = None
) -> CheckpointFiles:
    """Return a published snapshot as something to publish, in another precision or under another name.

    Parameters
    ----------
    manifest
        The snapshot's manifest.
    files
        Its plain files.
    blobs
        Reads its blobs, and the files that it was published from by reference, by their paths in the manifest.
    dtype
        Convert floating-point tensors.

    Examples
    --------
    >>> manifest = Manifest(model="tiny", architecture="BertModel", dtype="float32", files=[], groups=[])
    >>> inspect_snapshot(manifest, {}, LocalFolder(Path("."))).provenance["source"] == f"tiny {manifest.digest}"
    True
    """
    groups = []
    for group in manifest.groups:
        tensors = []
        for one in group.tensors:
            file = one.file or group.blob or ""
            stored = StoredTensor(blobs, file, one.name, one.dtype, one.shape, one.begin, one.end, one.blake3)
            tensors.append((one.name, as_stored(stored)))
        groups.append(GroupFile(group.name, tuple(tensors)))
    found = CheckpointFiles(
        manifest.architecture,
        manifest.dtype,
        files,
        tuple(groups),
        manifest.tied,
        manifest.entry,
        provenance={"source": f"{manifest.model} {manifest.digest}"} | _keep(manifest.provenance),
    )
    if dtype is None:
        return found
    model = None
    if manifest.entry is None:
        model, _ = _build(manifest.model, parse_json(files["config.json"]), manifest.architecture, files)
    return _convert(found, model, dtype)


def _open_folder(source: Path | Folder) -> Folder:
    if isinstance(source, Path) and not source.is_dir():
        raise CheckpointError(
            f"{source}: {'not a directory' if source.exists() else 'no such directory'}",
            hint="Give a folder written by `save_pretrained` or downloaded whole.",
        )
    folder: Folder = LocalFolder(source) if isinstance(source, Path) else source
    list_files(folder)
    return folder


def _refuse_code(where: str, config: Mapping[str, Any], trust_code: bool) -> None:
    if config.get("auto_map") and not trust_code:
        raise CheckpointError(
            f"{where}/config.json: auto_map is set: the model comes with code of its own, which is not run",
            hint="If you trust it: --trust-code, or model.trust_code: true in a recipe. Or build the model by a function "
            "of your own: --entry package.module:function, or model.entry in a recipe.",
        )


def _choose_class(where: str, config: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[str, str | None]:
    with _explain_config(where, str((config.get("architectures") or ["AutoModel"])[0])):
        return choose_class(config, files)


def _build(
    where: str, config: Mapping[str, Any], class_name: str, files: Mapping[str, bytes]
) -> tuple[PreTrainedModel, str]:
    """Return the checkpoint's model on the meta device, its weights tied, and the name of its class."""
    with _explain_config(where, class_name):
        model: Any = build_model(config, class_name, files=files)
    # Parameters made on the meta device lose their ties.
    model.tie_weights()
    return model, type(model).__name__


@contextmanager
def _explain_config(where: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{where}/{error.message}", hint=error.hint) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(
            f"{where}/config.json: transformers makes no {wanted} of it: {error}",
            hint="Fetch the checkpoint again; nothing that it names elsewhere, such as a backbone on a hub, is fetched.",
        ) from error


def _keep(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return what is as true of a conversion as of the version that it is made from."""
    return {name: provenance[name] for name in ("class", "missing") if name in provenance}


def _convert(found: CheckpointFiles, model: PreTrainedModel | None, dtype: str) -> CheckpointFiles:
    if dtype not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f"cannot convert to {dtype!r}", hint="Choose float32, bfloat16 or float16.")
    precision = precision_of(model, _CODES[dtype])
    groups = tuple(
        GroupFile(group.name, tuple((name, cast(tensor, precision(name))) for name, tensor in group.tensors))
        for group in found.groups
    )
    provenance = {**found.provenance, "dtype": f"converted from {found.dtype}"}
    return replace(found, groups=groups, dtype=_main_dtype(found.architecture, groups), provenance=provenance)


def _main_dtype(where: str, groups: Iterable[GroupFile]) -> str:
    sizes: Counter[str] = Counter()
    for group in groups:
        for _, tensor in group.tensors:
            sizes[tensor.dtype] += tensor.nbytes
    dtype = sizes.most_common(1)[0][0] if sizes else "nothing"
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{where}: the weights are stored as {dtype}", hint="Publish them in float32, bfloat16 or float16."
        )
    return _DTYPES[dtype]
