"""Tasks on texts, whole and in one process: encoded, filled with a checkpoint's weights, run, and done the plain way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from daskinfer.models.architecture import stored_prefix
from daskinfer.models.encoding import EncodedRows
from daskinfer.models.reference import run_unsplit
from daskinfer.models.tasks.encode import make_encoder, row_length
from daskinfer.models.tasks.fields import task_fields
from daskinfer.models.tasks.finish import finish_rows
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.spec.recipe import ModelOptions


def ask_task(directory: Path, task: str, **options: Any) -> TaskRequest:
    """Return a task on a checkpoint directory; `options` are those of a recipe."""
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.json")}
    architecture = json.loads(files["config.json"])["architectures"][0]
    return TaskRequest(task, ModelOptions(**options), architecture, files)


def fill_task(module: TaskModule, directory: Path, dtype: str = "float32") -> TaskModule:
    """Give a module the weights of the checkpoint's own class, by the names that a snapshot has for them."""
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    whole = getattr(transformers, architecture).from_pretrained(directory, dtype=getattr(torch, dtype))
    stored = {name.removeprefix(stored_prefix(whole)): value.clone() for name, value in whole.state_dict().items()}
    for path in directory.glob("*_Dense/model.safetensors"):
        weights = load_file(path).items()
        stored |= {f"{path.parent.name}.{name}": value.to(getattr(torch, dtype)) for name, value in weights}
    assert all(parameter.is_meta for parameter in module.parameters())
    wanted = {name: stored[module.stored_name(name)] for name in module.state_dict()}
    module.load_state_dict(wanted, assign=True)
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    return module


def cut_items(encoded: EncodedRows, size: int = 3) -> list[tuple[list[int], dict[str, Any]]]:
    """Return microbatches of at most `size` items, longest first: the items, and the model's inputs."""
    order = np.argsort(-encoded.lengths, kind="stable").tolist()
    chunks = [order[begin : begin + size] for begin in range(0, len(order), size)]
    return [(chunk, encoded.batch(chunk, int(encoded.lengths[chunk].max()))) for chunk in chunks]


def run_task(module: TaskModule, encoded: EncodedRows) -> dict[str, Any]:
    """Return what a filled module gives for all items, in their order."""
    torch.set_num_threads(1)
    parts: dict[str, list[Any]] = {}
    order: list[int] = []
    with torch.inference_mode():
        for chunk, inputs in cut_items(encoded):
            assert set(inputs) == {array.name for array in module.inputs}
            order += chunk
            for name, values in module(**{key: torch.as_tensor(value) for key, value in inputs.items()}).items():
                parts.setdefault(name, []).append(values.numpy())
    back = np.argsort(order)
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def encode_texts(request: TaskRequest, texts: Sequence[str]) -> EncodedRows:
    """Return texts as rows, none of which may be refused."""
    encoded, refused = make_encoder(request, row_length(request)).encode({"text": texts})
    assert not refused
    return encoded


def run_reference(directory: Path, request: TaskRequest, encoded: EncodedRows, dtype: str = "float32") -> Any:
    """Return what `run_unsplit` gives for all items, in their order."""
    parts = cut_items(encoded)
    results = run_unsplit(
        directory, [inputs for _, inputs in parts], task=request.task, options=request.options, dtype=dtype
    )
    return np.concatenate(results)[np.argsort([item for chunk, _ in parts for item in chunk])]


def columns_of(request: TaskRequest, encoded: EncodedRows, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's columns, checked against what it says that it writes."""
    columns = finish_rows(request, encoded, arrays)
    fields = task_fields(request, row_length(request))
    assert list(columns) == [field.name for field in fields]
    for field in fields:
        values = columns[field.name]
        assert values.shape == (len(encoded.starts) - 1, *field.shape)
        assert values.dtype.kind == "U" if field.kind == "string" else values.dtype == field.kind
    return columns
