"""A text model without weights, as every task on texts takes it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daskinfer.models.architecture import build_model, has_class, stored_prefix
from daskinfer.models.preprocessing.tokenizer import read_settings
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.fields import refuse_sound, text_fields
from daskinfer.spec.outline import InputArray

Prefixes = tuple[tuple[str, str], ...]

# Names that models take sound by.
_SOUND = ("input_values", "input_features")


def build_text_model(request: TaskRequest, class_name: str, dtype: str) -> tuple[nn.Module, Prefixes]:
    """Return a model of an Auto class and what its tensors' names begin with; refuse what the checkpoint cannot do.

    A class of transformers that its Auto class does not list, such as Emu3ForCausalLM, is taken itself.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> model, prefixes = build_text_model(ask_tiny("score", "BertForMaskedLM"), "AutoModelForMaskedLM", "float32")
    >>> type(model).__name__, prefixes
    ('BertForMaskedLM', (('bert.', ''),))
    """
    text_fields(request, request.options.max_length)
    is_listed = has_class(request.config, class_name, request.files)
    name = class_name if is_listed or class_name == "AutoModel" else request.architecture
    model = build_model(request.config, name, dtype, request.files)
    prefix = stored_prefix(model)
    return model, ((prefix, ""),) if prefix else ()


def refuse_sound_model(model: Any, architecture: str) -> None:
    """Raise `CheckpointError` where a model, or its class, takes sound.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> refuse_sound_model(SimpleNamespace(main_input_name="input_ids"), "BertModel")
    >>> refuse_sound_model(SimpleNamespace(main_input_name="input_features"), "WhisperModel")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: WhisperModel takes sound, and the tasks embed and classify take texts and images
    Make arrays of one shape with the checkpoint's own feature extractor, and use the task forward on them.
    """
    if getattr(model, "main_input_name", None) in _SOUND:
        raise refuse_sound(architecture)


@dataclass(frozen=True, slots=True)
class TextInputs:
    """What a model is given of a text."""

    arrays: tuple[InputArray, ...]
    """What every row brings: token ids first, and the mask, which tells the task where a row ends."""
    given: tuple[str, ...]
    """Which of them the model is given."""
    zeros: tuple[str, ...] = ()
    """What else it is given, 0 for every token of every row, so that no row brings it."""

    def run(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        """Return the model's output."""
        zeros = {name: torch.zeros_like(inputs["input_ids"]) for name in self.zeros}
        return model(**{name: inputs[name] for name in self.given}, **zeros)


def text_inputs(model: nn.Module, request: TaskRequest) -> TextInputs:
    """Return what the tokenizer returns of a text and the model's forward takes.

    Without a mask a model sees the padding, and which rows may share a microbatch is found by trying.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("embed")
    >>> found = text_inputs(build_text_model(request, "AutoModel", "float32")[0], request)
    >>> [(array.name, array.bound) for array in found.arrays], found.given
    ([('input_ids', 97), ('attention_mask', 2)], ('input_ids', 'attention_mask'))
    """
    settings = read_settings(request.files)
    ids = InputArray(name="input_ids", dtype="int64", shape=(None,), bound=count_ids(model))
    mask = InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2)
    types = InputArray(name="token_type_ids", dtype="int64", shape=(None,), bound=settings.token_types)
    parameters = inspect.signature(model.forward).parameters
    # Code of the checkpoint's own may take everything unnamed.
    taken = parameters if "input_ids" in parameters else {ids.name, mask.name}
    given = [name for name in (mask.name, types.name) if name in settings.model_input_names and name in taken]
    if types.name not in given or settings.token_types > 1:
        arrays = (ids, mask, types) if types.name in given else (ids, mask)
        return TextInputs(arrays, (ids.name, *given))
    given.remove(types.name)
    return TextInputs((ids, mask), (ids.name, *given), (types.name,))


def count_ids(model: nn.Module) -> int | None:
    """Return how many token ids a model knows; None if it does not say.

    That is the fewer of its vocabulary and the rows of its input embeddings: some have more rows, for other uses.

    Examples
    --------
    >>> count_ids(nn.Linear(2, 2)) is None
    True
    """
    settings: Any = getattr(model, "config", None)
    told = getattr(settings and settings.get_text_config(), "vocab_size", None)
    sizes = [told] if isinstance(told, int) else []
    try:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        sizes.append(int(weight.shape[0]))
    return min(sizes, default=None)
