"""A model's modules without its weights: parameters on the meta device, buffers real.

Nothing large is ever allocated, so a 70B model is built in a fraction of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import huggingface_hub
import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _get_model_class

from daskinfer.errors import CheckpointError
from daskinfer.models.missing_kernels import refuse_missing_kernels
from daskinfer.models.remotecode import find_class
from daskinfer.models.versions import ATTENTION

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


NO_FILES: Mapping[str, bytes] = MappingProxyType({})
"""Of a model that transformers knows, nothing but config.json is needed."""


_AUTO_CLASSES = tuple(
    each
    for name, each in vars(modeling_auto).items()
    # That one lists again what others have.
    if name.startswith("AutoModel") and name != "AutoModelForPreTraining" and hasattr(each, "_model_mapping")
)


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, which parameters are made of, gives meta tensors; whatever has values keeps them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Any:
    """Modules made inside have all parameters on the meta device and all buffers with their values.

    Examples
    --------
    >>> with without_weights():
    ...     print(nn.Linear(10**6, 10**6).weight.device)
    meta
    """
    with _EmptyOnMeta(), init_empty_weights(include_buffers=False):
        yield


@contextmanager
def without_network() -> Iterator[None]:
    """Let transformers ask no hub: a checkpoint's configuration may name another one, for its backbone.

    Examples
    --------
    >>> with without_network():
    ...     print(huggingface_hub.constants.HF_HUB_OFFLINE)
    True
    """
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def build_model(
    config: Mapping[str, Any], class_name: str, dtype: str = "float32", files: Mapping[str, bytes] = NO_FILES
) -> nn.Module:
    """Return a transformers model without weights, in evaluation mode.

    Parameters
    ----------
    config
        Content of config.json.
    class_name
        A class of transformers (`BertForMaskedLM`), or one of its Auto classes (`AutoModel`).
    dtype
        Precision that parameters and floating-point buffers are made in.
    files
        The snapshot's plain files. Code among them is run: it brings the classes that `auto_map` names.

    Raises
    ------
    CheckpointError
        Where neither the checkpoint's code nor transformers has such a model, or it lacks a kernel.

    Examples
    --------
    >>> model = build_model({"model_type": "bert"}, "BertForMaskedLM")
    >>> model.training, next(model.parameters()).device.type
    (False, 'meta')
    """
    settings = make_config(config, files)
    model_class: Any = find_class(config, files, class_name) or getattr(transformers, class_name, None)
    if model_class is None:
        raise _unknown_class(class_name)
    if hasattr(model_class, "_model_mapping"):
        try:
            model_class = _class_in(settings, model_class._model_mapping)
        except KeyError:
            raise CheckpointError(
                f"config.json: {settings.model_type} models have no {class_name.removeprefix('Auto')}",
                hint="Choose another task.",
            ) from None
    _refuse_other(model_class, PreTrainedModel)
    with without_network(), without_weights():
        model = instantiate(model_class, settings, getattr(torch, dtype))
    refuse_missing_kernels(model)
    return model.eval()


def has_class(config: Mapping[str, Any], class_name: str, files: Mapping[str, bytes] = NO_FILES) -> bool:
    """Whether an Auto class of transformers lists a model for a configuration, or the checkpoint's code brings it.

    Examples
    --------
    >>> [has_class({"model_type": "gpt2"}, name) for name in ("AutoModelForCausalLM", "AutoModelForMaskedLM")]
    [True, False]
    """
    mapping: Any = getattr(transformers, class_name)._model_mapping
    return type(make_config(config, files)) in mapping or find_class(config, files, class_name) is not None


def choose_class(config: Mapping[str, Any], files: Mapping[str, bytes] = NO_FILES) -> tuple[str, str | None]:
    """Return the class that a checkpoint is published as, and what to say where it is not the one that it names.

    Of a class that transformers has for other models, it is the one that the model type has in its place; of one that
    transformers does not have, such as a training script's own subclass, the base model.

    Raises
    ------
    CheckpointError
        Where `architectures` is no list of names, or transformers has no base model for the model type either.

    Examples
    --------
    >>> choose_class({"model_type": "bert", "architectures": ["MyBert"]})
    ('AutoModel', 'the base model: transformers has no class MyBert')
    """
    names = class_names(config)
    if not names:
        return "AutoModel", None
    if any(path.endswith(".py") for path in files):
        return names[0], None
    settings = make_config(config)
    for name in names:
        found = _find_class(name)
        if found is not None and issubclass(type(settings), found.config_class or PreTrainedConfig):
            return name, None
    for name in names:
        for instead in _find_places(_find_class(name), settings):
            return instead, f"{instead}: {settings.model_type} models have no {name}"
    if type(settings) not in transformers.AutoModel._model_mapping:
        raise _unknown_class(names[0])
    return "AutoModel", f"the base model: transformers has no class {', '.join(names)}"


def class_names(config: Mapping[str, Any]) -> list[str]:
    """Return the classes that config.json says the checkpoint was saved from.

    Raises
    ------
    CheckpointError
        Where they are no list of names.

    Examples
    --------
    >>> class_names({"architectures": ["BertModel"]}), class_names({})
    (['BertModel'], [])
    """
    names = config.get("architectures") or []
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"config.json: architectures is {names!r}, and not a list of names",
            hint="Write the name of the model's class in brackets, or take architectures out.",
        )
    return list(names)


def refuse_unknown_class(config: Mapping[str, Any], files: Mapping[str, bytes], architecture: str) -> None:
    """Raise `CheckpointError` where a checkpoint's own class, whose forward is asked for, is not known.

    Examples
    --------
    >>> refuse_unknown_class({"architectures": ["MyBert"]}, {}, "BertModel")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: config.json: transformers has no class MyBert, ...
    """
    names = class_names(config)
    if (
        names
        and architecture not in names
        and not any(map(_find_class, names))
        and find_class(config, files, names[0]) is None
    ):
        raise CheckpointError(
            f"config.json: transformers has no class {', '.join(names)}, so its own forward is not known",
            hint=f"Take architectures out of config.json and publish again, for the outputs of {architecture}.",
        )


def instantiate(model_class: Any, settings: Any, dtype: torch.dtype) -> nn.Module:
    """Return a model with torch's own attention kernels, in every part that has them.

    Examples
    --------
    >>> with without_weights():
    ...     print(instantiate(transformers.BertModel, make_config({"model_type": "bert"}), torch.float16).dtype)
    torch.float16
    """
    settings._attn_implementation = ATTENTION if getattr(model_class, "_supports_sdpa", False) else "eager"
    try:
        model: nn.Module = model_class._from_config(settings, dtype=dtype)
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        # A backbone has none of them; left to itself, transformers chooses for each part.
        settings._attn_implementation = None
        model = model_class._from_config(settings, dtype=dtype)
    return model


def make_config(config: Mapping[str, Any], files: Mapping[str, bytes] = NO_FILES) -> Any:
    """Return transformers' configuration object, set to plain forwards: no cache, no extra outputs.

    Raises
    ------
    CheckpointError
        Where transformers does not know the model type.

    Examples
    --------
    >>> make_config({"model_type": "gpt2"}).use_cache
    False
    """
    settings = read_settings(config, files)
    # A checkpoint's configuration may ask for outputs that no task reads, or for tuples.
    settings.update({"output_hidden_states": False, "output_attentions": False, "return_dict": True})
    for part in (settings, *(getattr(settings, name) for name in settings.sub_configs if hasattr(settings, name))):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return settings


def read_settings(config: Mapping[str, Any], files: Mapping[str, bytes] = NO_FILES) -> Any:
    """Return transformers' configuration object as `AutoConfig` reads it: special floats, old keys and all.

    Raises
    ------
    CheckpointError
        Where transformers does not know the model type.

    Examples
    --------
    >>> read_settings({"model_type": "bert", "hidden_size": 128}).hidden_size
    128
    """
    config_class = find_class(config, files, "AutoConfig")
    if config_class is not None:
        _refuse_other(config_class, PreTrainedConfig)
        with without_network():
            return config_class.from_dict(PreTrainedConfig._decode_special_floats(dict(config)))
    model_type = config.get("model_type")
    if model_type is None:
        # Early versions did not write it; the class tells.
        kinds = (_find_class(name) for name in class_names(config))
        model_type = next((kind.config_class.model_type for kind in kinds if kind and kind.config_class), None)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not known to transformers {transformers.__version__}",
            hint="Upgrade transformers, or publish the model through its own code: model.entry.",
        )
    if config.get("configuration_files"):
        raise CheckpointError(
            "config.json: configuration_files names other files, by version of transformers",
            hint="Load the configuration with AutoConfig.from_pretrained, and save it as config.json.",
        )
    content = {key: value for key, value in config.items() if key != "auto_map"} | {"model_type": model_type}
    with without_network(), TemporaryDirectory(prefix="daskinfer-config-") as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(content))
        settings = AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
    settings._name_or_path = ""
    return settings


def stored_prefix(model: nn.Module) -> str:
    """Return what a snapshot leaves out of a model's tensor names: the base model's attribute, `bert.`, or nothing.

    Examples
    --------
    >>> stored_prefix(build_model({"model_type": "bert"}, "BertForMaskedLM"))
    'bert.'
    """
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def stored_name(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """Return a tensor's name in the snapshot: the first prefix that fits is replaced.

    Parameters
    ----------
    name
        Name in the module, as in its `state_dict`.
    prefixes
        (prefix in the module, prefix in the snapshot), the longest first.

    Examples
    --------
    >>> stored_name("model.bert.pooler.weight", [("model.bert.", "")])
    'pooler.weight'
    """
    for prefix, stored in prefixes:
        if name.startswith(prefix):
            return stored + name[len(prefix) :]
    return name


def _find_class(name: str) -> Any:
    """Return a model's class of transformers; None where there is none of that name."""
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def _find_places(found: Any, settings: Any) -> Iterator[str]:
    """Return what another model type has in the place of a class: in the same Auto class."""
    for auto in _AUTO_CLASSES if found is not None else ():
        mapping: Any = auto._model_mapping
        if found.config_class in mapping and type(settings) in mapping:
            listed = mapping[found.config_class]
            if found in (listed if isinstance(listed, tuple | list) else (listed,)):
                yield _class_in(settings, mapping).__name__


def _class_in(settings: Any, mapping: Any) -> Any:
    """Return the class that an Auto class takes; of several, the one that the configuration names."""
    return _get_model_class(settings, mapping)  # type: ignore[no-untyped-call]


def _unknown_class(name: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: transformers {transformers.__version__} has no class {name!r}",
        hint="Upgrade transformers; or take architectures out of config.json, for the base model; "
        "or publish the model through its own code: model.entry.",
    )


def _refuse_other(found: Any, wanted: type) -> None:
    if not (isinstance(found, type) and issubclass(found, wanted)):
        raise CheckpointError(
            f"config.json: {found.__name__} is no {wanted.__name__} of transformers",
            hint="Publish the model through a function that builds it: model.entry.",
        )


def keep_float32(model: nn.Module, dtype: torch.dtype) -> None:
    """Put back in float32 what a transformers model says keeps it when it is loaded in a precision.

    Examples
    --------
    >>> model = build_model({"model_type": "t5"}, "AutoModel", "float16")
    >>> keep_float32(model, torch.float16)
    >>> {tensor.dtype for name, tensor in model.state_dict().items() if ".wo." in name}
    {torch.float32}
    """
    plan: Mapping[str, torch.dtype] = getattr(model, "_get_dtype_plan", lambda dtype: {})(dtype)
    if not plan:
        return
    pattern = re.compile("|".join(name.replace("*", ".*") for name in plan))
    for path, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and pattern.search(path) is not None:
            tensor.data = tensor.data.float()
