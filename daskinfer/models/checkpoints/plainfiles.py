"""What a checkpoint has besides weights: configuration, tokenizer, processors, sentence-transformers' modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISFIFO, S_ISSOCK
from typing import Any

from daskinfer.errors import CheckpointError
from daskinfer.ids import parse_json, refuse_dense
from daskinfer.models.checkpoints.config_limits import refuse_absurd
from daskinfer.models.checkpoints.tensorfiles import GroupFile, as_stored, read_header, refuse_pickles
from daskinfer.models.folder import Folder
from daskinfer.models.tasks.sentence import TEXT_SETTINGS
from daskinfer.spec.names import check_path
from daskinfer.units import format_bytes

_KEPT = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "modules.json",
    *TEXT_SETTINGS,
    "config_sentence_transformers.json",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
)
_SPECIAL = ((S_ISFIFO, "named pipe"), (S_ISSOCK, "socket"), (S_ISBLK, "device"), (S_ISCHR, "device"))
_SENTENCE_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout")
# As peft, AdapterHub, diffusers and MLX write them; transformers takes peft's where that is installed, and passes over
# them where it is not.
_ADAPTERS = (
    "adapter_config.json",
    "adapter_model.",
    "adapters.safetensors",
    "pytorch_adapter.",
    "pytorch_lora_weights.",
)
_LARGEST_FILE = 150_000_000  # bytes; tokenizers of a million words have half of it
_LARGEST_CONFIG = 16_000_000
_QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def list_files(folder: Folder) -> list[str]:
    """Return the names of a folder's files; refuse one that has none.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> _ = Path("config.json").write_text("{}")
    >>> list_files(LocalFolder(Path(".")))
    ['config.json']
    """
    names = folder.names()
    if not names:
        raise CheckpointError(
            f"{folder.url}: no such directory, or an empty one",
            hint="Give a folder written by `save_pretrained` or downloaded whole.",
        )
    refuse_special_files(folder.url)
    return names


def read_bounded(folder: Folder, name: str, most: int = _LARGEST_FILE) -> bytes:
    """Return the content of a plain file; refuse one that is longer than any has.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> _ = Path("config.json").write_text("{}")
    >>> read_bounded(LocalFolder(Path(".")), "config.json")
    b'{}'
    """
    size = folder.size(name)
    if size is not None and size > most:
        raise CheckpointError(
            f"{folder.url}/{name}: {format_bytes(size)}, and at most {format_bytes(most)} is read",
            hint="Fetch the checkpoint again.",
        )
    return folder.read(name)


def refuse_special_files(url: str) -> None:
    """Raise `CheckpointError` where a local folder, or one in it, holds what is no file of its own.

    A link may lead to another place in the folder, or where the cache of a hub has its files: `../../blobs`. Weights may
    lie anywhere: of what is no tensor in them, nothing is stored.

    Examples
    --------
    >>> Path("README.md").symlink_to("/etc/hostname")
    >>> refuse_special_files(".")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: README.md: it is a link to /etc/hostname, which is not in the checkpoint's folder
    Put the file itself there, or take it away.
    """
    root = Path(url)
    if "://" in url or not root.is_dir():
        return
    inside = root.resolve()
    for path in sorted(each for pattern in ("*", "*/*") for each in root.glob(pattern)):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise _refuse_special(path, f"a link that leads nowhere: {error.strerror}") from error
        kind = next((name for test, name in _SPECIAL if test(mode)), None)
        if kind is not None:
            raise _refuse_special(path, f"a {kind}, not a file")
        target = path.resolve()
        is_home = target.is_relative_to(inside) or target.parent == inside.parents[1] / "blobs"
        if path.is_symlink() and not is_home and path.suffix != ".safetensors":
            raise _refuse_special(path, f"a link to {target}, which is not in the checkpoint's folder")


def _refuse_special(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: it is {what}", hint="Put the file itself there, or take it away.")


def read_config(folder: Folder, names: list[str]) -> dict[str, Any]:
    """Return the content of config.json.

    Raises
    ------
    CheckpointError
        Where there is none, or it is not a JSON object.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> _ = Path("config.json").write_text('{"model_type": "bert"}')
    >>> read_config(LocalFolder(Path(".")), ["config.json"])
    {'model_type': 'bert'}
    """
    if "config.json" not in names:
        adapter = "adapter_config.json" in names
        if not adapter and not any(name.endswith(".safetensors") for name in names):
            refuse_pickles(folder.url, names)
        for kind, path in _sentence_modules(
            folder, {name: folder.read(name) for name in names if name == "modules.json"}
        ):
            if kind == "Transformer" and path:
                raise CheckpointError(
                    f"{folder.url}: modules.json puts the Transformer in {path}, and only one beside it is read",
                    hint=f"Move the files of {path} up beside modules.json, and set its path there to ''.",
                )
        raise CheckpointError(
            f"{folder.url}: no config.json" + (", but an adapter: it is not a model by itself" if adapter else ""),
            hint="Merge the adapter into its base model and save that."
            if adapter
            else "A checkpoint directory holds config.json and model.safetensors; a model of your own needs its entry.",
        )
    config = _parse(folder, "config.json", read_bounded(folder, "config.json", _LARGEST_CONFIG))
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder.url}/config.json: a JSON object is wanted", hint="Fetch the checkpoint again.")
    refuse_absurd(config)
    return config


def refuse_beside(where: str, names: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where other weights than those of the plain model belong to the checkpoint.

    Parameters
    ----------
    where
        The folder, for messages.
    names
        Its files.
    config
        Content of config.json; empty for a user's own model.

    Examples
    --------
    >>> refuse_beside("here", ["model.safetensors"], {"model_type": "bert"})
    >>> refuse_beside("here", ["adapter_config.json"], {})
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: here: adapter_config.json is beside the model: an adapter, ...
    """
    adapters = [name for name in names if name.startswith(_ADAPTERS)]
    if adapters:
        raise CheckpointError(
            f"{where}: {adapters[0]} is beside the model: an adapter, without which it is another model",
            hint="Load both with peft, call merge_and_unload() and save that; or take the adapter's files away.",
        )
    settings = [f"{name} is there" for name in _QUANTISED if name in names]
    settings += [f"config.json: {key} is set" for key in _find_quantised(config)]
    if settings:
        raise CheckpointError(
            f"{where}/{settings[0]}: the weights are quantised, which is not supported",
            hint="Publish the model in float32, bfloat16 or float16"
            + (", without that file." if settings[0].endswith("there") else "."),
        )


def _find_quantised(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key in _QUANTISATION_KEYS and value:
            yield path + key
        elif isinstance(value, Mapping):
            yield from _find_quantised(value, f"{path}{key}.")


def read_plain_files(folder: Folder, names: list[str]) -> dict[str, bytes]:
    """Return the files of a checkpoint that a snapshot keeps; empty ones say nothing and are left out.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> _ = Path("config.json").write_text("{}"), Path("training_args.bin").write_text("x")
    >>> read_plain_files(LocalFolder(Path(".")), ["config.json", "training_args.bin"])
    {'config.json': b'{}'}
    """
    files = {name: read_bounded(folder, name) for name in _KEPT if name in names}
    for _, path in _sentence_modules(folder, files):
        if path and folder.size(f"{path}/config.json") is not None:
            files[f"{path}/config.json"] = read_bounded(folder, f"{path}/config.json", _LARGEST_CONFIG)
    return {name: data for name, data in files.items() if data}


def read_sentence_weights(folder: Folder, files: Mapping[str, bytes]) -> tuple[GroupFile, ...]:
    """Return the weights of sentence-transformers' own modules, a group each.

    Raises
    ------
    CheckpointError
        Where `embed` has no such module, or its weights are absent, pickled or of another shape.

    Examples
    --------
    >>> from daskinfer.models.folder import LocalFolder
    >>> read_sentence_weights(LocalFolder(Path(".")), {"config.json": b"{}"})
    ()
    """
    groups = []
    for kind, path in _sentence_modules(folder, files):
        if kind not in _SENTENCE_MODULES:
            raise CheckpointError(
                f"{folder.url}/modules.json: the module {kind} is not supported",
                hint=f"Only {', '.join(_SENTENCE_MODULES)} are; without modules.json the model alone is published.",
            )
        if kind != "Dense":
            continue
        file = f"{path}/model.safetensors"
        if folder.size(file) is None and folder.size(f"{path}/pytorch_model.bin") is not None:
            refuse_pickles(f"{folder.url}/{path}", ["pytorch_model.bin"])
        tensors = read_header(folder, file)
        config = _parse(folder, f"{path}/config.json", files.get(f"{path}/config.json", b"{}"))
        wanted: dict[str, tuple[Any, ...]] = {"linear.weight": (config.get("out_features"), config.get("in_features"))}
        if config.get("bias", True):
            wanted["linear.bias"] = (config.get("out_features"),)
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != wanted:
            raise CheckpointError(
                f"{folder.url}/{file}: it holds {found}, by {path}/config.json it should hold {wanted}",
                hint="Fetch the checkpoint again.",
            )
        groups.append(GroupFile(path, tuple((f"{path}.{name}", as_stored(tensor)) for name, tensor in tensors.items())))
    return tuple(groups)


def _sentence_modules(folder: Folder, files: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Return kind and folder of each of sentence-transformers' modules."""
    try:
        modules = _parse(folder, "modules.json", files.get("modules.json", b"[]"))
        found = [(str(module["type"]).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder.url}/modules.json: cannot be read ({error})", hint="Fetch the checkpoint again."
        ) from error
    for _, path in found:
        _check_place(folder, path)
    return found


def _check_place(folder: Folder, path: str) -> None:
    """Refuse a module that lies anywhere but beside modules.json, or one folder down, where links are looked at."""
    try:
        is_beside = not path or "/" not in check_path(path)
    except ValueError:
        is_beside = False
    if not is_beside:
        raise CheckpointError(
            f"{folder.url}/modules.json: a module lies in {path[:100]!r}, which is no folder beside it",
            hint="Fetch the checkpoint again; nothing outside its own folder is read.",
        )


def _parse(folder: Folder, name: str, data: bytes) -> Any:
    try:
        refuse_dense(data)
        return parse_json(data)
    except ValueError as error:
        raise CheckpointError(
            f"{folder.url}/{name}: not valid JSON ({error})", hint="Fetch the checkpoint again."
        ) from error
