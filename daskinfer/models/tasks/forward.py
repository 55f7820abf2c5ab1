"""`forward`: named arrays in, the model's own outputs out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import build_model, refuse_unknown_class, stored_prefix
from daskinfer.models.entry import load_entry
from daskinfer.models.preprocessing.arrays import bound_ids
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.module import TaskModule
from daskinfer.spec.outline import InputArray

# No output format has them; nothing is lost.
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.int8: torch.int32,
    torch.int16: torch.int32,
}


class Forward(TaskModule):
    """A model as it is; `left_out` tells of outputs that are not returned why, by name.

    Examples
    --------
    >>> x = InputArray(name="x", dtype="float32", shape=(2,))
    >>> Forward(nn.Sequential(nn.Identity()), (), (x,))(x=torch.zeros(3, 2, dtype=torch.float16))["output"].dtype
    torch.float32
    """

    def __init__(self, model: nn.Module, prefixes: tuple[tuple[str, str], ...], inputs: tuple[InputArray, ...]) -> None:
        super().__init__(model, prefixes, inputs)
        self.left_out: dict[str, str] = {}

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return every tensor of the outputs that has rows first, nested ones too, each in the type that is written."""
        values = tuple(inputs.values())
        # A Sequential takes one array, whatever it is called.
        output = self.model(*values) if isinstance(self.model, nn.Sequential) else self.model(**inputs)
        found: dict[str, Tensor] = {}
        for name, value in _name_outputs(output):
            if not isinstance(value, Tensor):
                self.left_out[name] = f"is a {type(value).__name__} and no tensor"
            elif not value.ndim or len(value) != len(values[0]):
                self.left_out[name] = "does not have one value for every row"
            elif name in found:
                self.left_out[f"{name} (another)"] = "has the name of another output"
            else:
                found[name] = value.to(_WIDER.get(value.dtype, value.dtype))
        return found


def make_forward(request: TaskRequest, dtype: str) -> TaskModule:
    """Return the checkpoint's own class, or the user's own module, on the request's arrays.

    Raises
    ------
    CheckpointError
        Where its forward does not take the arrays that the request names, or wants others.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> ids = InputArray(name="input_ids", dtype="int64", shape=(8,))
    >>> make_forward(ask_tiny("forward").with_arrays([ids]), "float32").inputs[0].bound
    97
    >>> make_forward(ask_tiny("forward").with_arrays([ids.model_copy(update={"name": "text"})]), "float32")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: BertModel: its forward does not take text; it takes input_ids, attention_mask, ...
    """
    if request.entry is None:
        refuse_unknown_class(request.config, request.files, request.architecture)
        model = build_model(request.config, request.architecture, dtype, request.files)
    else:
        model = load_entry(request.entry).to(getattr(torch, dtype))
    _check_names(model, [array.name for array in request.arrays], request.architecture)
    prefix = stored_prefix(model)
    return Forward(model, ((prefix, ""),) if prefix else (), bound_ids(request))


def _name_outputs(output: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything in an output but None, with its name: `logits`, `hidden_states_0`, `output_1` ..."""
    if output is None:
        return
    if isinstance(output, Mapping):
        parts = [(str(key), part) for key, part in output.items()]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        parts = [(key, getattr(output, key)) for key in output._fields]
    elif isinstance(output, tuple | list):
        name = name or "output"
        parts = [(str(number), part) for number, part in enumerate(output)]
    else:
        yield name or "output", output
        return
    for key, part in parts:
        yield from _name_outputs(part, f"{name}_{key}" if name else key)


def _check_names(model: nn.Module, names: list[str], architecture: str) -> None:
    if isinstance(model, nn.Sequential):
        if len(names) != 1:
            raise CheckpointError(
                f"{architecture} is an nn.Sequential, which takes one array; the recipe gives {len(names)}",
                hint="Name one array: input.columns: {NAME: COLUMN}.",
            )
        return
    parameters = inspect.signature(model.forward).parameters.values()
    taken = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    wanted = [one.name for one in parameters if one.name in taken and one.default is one.empty]
    # transformers' own forwards take any keyword, and ignore those that they do not know.
    takes_any = len(taken) < len(parameters) and not isinstance(model, PreTrainedModel)
    unknown = [] if takes_any else [name for name in names if name not in taken]
    missing = [name for name in wanted if name not in names]
    if unknown or missing or not names:
        problem = f"does not take {', '.join(unknown)}" if unknown else f"wants {', '.join(missing or taken)}"
        raise CheckpointError(
            f"{architecture}: its forward {problem}; it takes {', '.join(taken)}",
            hint="Name its arrays in the recipe: input.columns: {NAME: COLUMN}.",
        )
