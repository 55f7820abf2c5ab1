"""From the last layer's output to what a task writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daskinfer.models.tasks.fields import label_names, use_sigmoid
from daskinfer.spec.recipe import ModelOptions

Outputs = dict[str, np.ndarray[Any, Any]]
Head = Callable[[Any, Tensor], Outputs]


def make_head(task: str, config: Mapping[str, Any], options: ModelOptions) -> Head:
    """Return the function that turns a model's output and the mask (rows, tokens) into the task's columns."""
    if task == "classify":
        names = np.array(label_names(config))
        sigmoid = use_sigmoid(config)
        return lambda output, mask: classify(output.logits, names, sigmoid)
    return lambda output, mask: {"embedding": embed(output.last_hidden_state, mask, options)}


def embed(hidden: Tensor, mask: Tensor, options: ModelOptions) -> np.ndarray[Any, Any]:
    """Return one float32 vector a row, (rows, width), from hidden states (rows, tokens, width).

    Same operations as sentence-transformers in float32; lower precisions are pooled in float32 too.
    """
    hidden = hidden.float()
    if options.pooling == "cls":
        pooled = hidden[:, 0]
    else:
        weights = mask.unsqueeze(-1).expand(hidden.size()).to(hidden.dtype)
        pooled = torch.sum(hidden * weights, 1) / torch.clamp(weights.sum(1), min=1e-9)
    if options.normalize:
        pooled = torch.nn.functional.normalize(pooled, p=2, dim=1)
    result: np.ndarray[Any, Any] = pooled.contiguous().cpu().numpy()
    return result


def classify(logits: Tensor, names: np.ndarray[Any, Any], sigmoid: bool) -> Outputs:
    """Return the best class as `label` (rows,), its `score` (rows,) and all `scores` (rows, classes)."""
    logits = logits.float()
    scores = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=-1)
    table: np.ndarray[Any, Any] = scores.cpu().numpy()
    best = table.argmax(axis=1)
    return {"label": names[best], "score": table[np.arange(len(table)), best], "scores": table}
