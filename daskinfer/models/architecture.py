"""A model's modules without its weights: parameters on the meta device, buffers real.

Nothing large is ever allocated, so a 70B model is built in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from daskinfer.errors import CheckpointError
from daskinfer.models.remotecode import find_class
from daskinfer.models.versions import ATTENTION

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


NO_FILES: Mapping[str, bytes] = MappingProxyType({})
"""Of a model that transformers knows, nothing but config.json is needed."""


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
    """Modules made inside have all parameters on the meta device and all buffers with their values."""
    with _EmptyOnMeta(), init_empty_weights(include_buffers=False):
        yield


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
        Where neither the checkpoint's code nor transformers has such a model.
    """
    settings = make_config(config, files)
    model_class: Any = find_class(config, files, class_name) or getattr(transformers, class_name, None)
    if model_class is None:
        raise CheckpointError(
            f"config.json: transformers {transformers.__version__} has no class {class_name!r}",
            hint="Upgrade transformers, or publish the model through its own code: model.entry.",
        )
    if hasattr(model_class, "_model_mapping"):
        try:
            model_class = model_class._model_mapping[type(settings)]
        except KeyError:
            raise CheckpointError(
                f"config.json: {settings.model_type} models have no {class_name.removeprefix('Auto')}",
                hint="Choose another task.",
            ) from None
        model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
    _refuse_other(model_class, PreTrainedModel)
    settings._attn_implementation = ATTENTION if getattr(model_class, "_supports_sdpa", False) else "eager"
    with without_weights():
        model: nn.Module = model_class._from_config(settings, dtype=getattr(torch, dtype))
    return model.eval()


def make_config(config: Mapping[str, Any], files: Mapping[str, bytes] = NO_FILES) -> Any:
    """Return transformers' configuration object, set to plain forwards: no cache, no extra outputs.

    Raises
    ------
    CheckpointError
        Where transformers does not know the model type.
    """
    model_type = config.get("model_type")
    config_class = find_class(config, files, "AutoConfig")
    if config_class is not None:
        _refuse_other(config_class, PreTrainedConfig)
    elif isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
    else:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not known to transformers {transformers.__version__}",
            hint="Upgrade transformers, or publish the model through its own code: model.entry.",
        )
    settings = config_class.from_dict(dict(config))
    # A checkpoint's configuration may ask for outputs that no task reads, or for tuples.
    settings.update({"output_hidden_states": False, "output_attentions": False, "return_dict": True})
    for part in (settings, *(getattr(settings, name) for name in settings.sub_configs if hasattr(settings, name))):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return settings


def stored_prefix(model: nn.Module) -> str:
    """Return what a snapshot leaves out of a model's tensor names: the base model's attribute, `bert.`, or nothing."""
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
    """
    for prefix, stored in prefixes:
        if name.startswith(prefix):
            return stored + name[len(prefix) :]
    return name


def _refuse_other(found: Any, wanted: type) -> None:
    if not (isinstance(found, type) and issubclass(found, wanted)):
        raise CheckpointError(
            f"config.json: {found.__name__} is no {wanted.__name__} of transformers",
            hint="Publish the model through a function that builds it: model.entry.",
        )
