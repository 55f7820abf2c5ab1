"""`forward`: named arrays in, the model's own outputs out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import build_model, refuse_unknown_class, stored_prefix
from daskinfer.models.arrays import bound_ids
from daskinfer.models.entry import load_entry
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest


class Forward(TaskModule):
    """A model as it is."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs that have rows first; float16 and bfloat16 become float32."""
        values = tuple(inputs.values())
        # A Sequential takes one array, whatever it is called.
        output = self.model(*values) if isinstance(self.model, nn.Sequential) else self.model(**inputs)
        return {
            name: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
            for name, value in _name_outputs(output).items()
            if isinstance(value, Tensor) and value.ndim and len(value) == len(values[0])
        }


def make_forward(request: TaskRequest, dtype: str) -> TaskModule:
    """Return the checkpoint's own class, or the user's own module, on the request's arrays.

    Raises
    ------
    CheckpointError
        Where its forward does not take the arrays that the request names, or wants others.
    """
    if request.entry is None:
        refuse_unknown_class(request.config, request.files, request.architecture)
        model = build_model(request.config, request.architecture, dtype, request.files)
    else:
        model = load_entry(request.entry).to(getattr(torch, dtype))
    _check_names(model, [array.name for array in request.arrays], request.architecture)
    prefix = stored_prefix(model)
    return Forward(model, ((prefix, ""),) if prefix else (), bound_ids(request))


def _name_outputs(output: Any) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple | list):
        return {f"output_{number}": value for number, value in enumerate(output)}
    return {"output": output}


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
