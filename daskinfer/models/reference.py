"""The plain way: transformers' own model, whole, in this process. What staged output is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification

from daskinfer.spec.recipe import ModelOptions


def run_unsplit(
    directory: Path,
    microbatches: Iterable[tuple[NDArray[np.int32], NDArray[np.int32]]],
    *,
    task: str = "embed",
    options: ModelOptions | None = None,
    dtype: str = "float32",
    threads: int = 1,
) -> list[NDArray[np.float32]]:
    """Return embeddings (rows, width) or logits (rows, classes) of each microbatch, by `from_pretrained` and pooling.

    Parameters
    ----------
    directory
        A local checkpoint directory.
    microbatches
        Token ids (rows, tokens) and lengths (rows,) of each.
    task, options, dtype
        As in a recipe.
    threads
        Cores to compute with; bits may depend on it.
    """
    options = options or ModelOptions()
    factory: Any = AutoModelForSequenceClassification if task == "classify" else AutoModel
    model = factory.from_pretrained(
        directory, local_files_only=True, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    ).eval()
    # transformers leaves the weights in the mapped file, at addresses where some kernels sum in another order.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    torch.set_num_threads(threads)
    results = []
    with torch.inference_mode():
        for ids, lengths in microbatches:
            mask = torch.arange(ids.shape[1]) < torch.as_tensor(lengths)[:, None]
            output = model(input_ids=torch.as_tensor(ids).long(), attention_mask=mask.long())
            if task == "classify":
                results.append(output.logits.float().numpy())
                continue
            hidden = output.last_hidden_state.float()
            if options.pooling == "mean":
                weights = mask[:, :, None].expand(hidden.shape).float()
                pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            else:
                pooled = hidden[:, 0]
            if options.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            results.append(pooled.numpy())
    return results
