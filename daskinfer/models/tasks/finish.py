"""From what the model returned for every item to the columns that a task writes for every row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from daskinfer.models.encoding import Array, EncodedRows
from daskinfer.models.tasks.encode import row_length
from daskinfer.models.tasks.fields import label_names
from daskinfer.models.tasks.request import TaskRequest


def finish_rows(request: TaskRequest, encoded: EncodedRows, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return a task's columns, (rows, ...) each.

    Parameters
    ----------
    request
        The task.
    encoded
        The rows.
    arrays
        What the model returned, (items, ...) each.
    """
    if request.task == "classify":
        return name_classes(label_names(request.config), arrays["scores"])
    if request.task == "score":
        return _finish_scores(request, encoded, arrays)
    return dict(arrays)


def name_classes(names: tuple[str, ...], scores: Array) -> dict[str, Array]:
    """Return the best class as `label` (rows,), its `score` (rows,), and all `scores` (rows, classes)."""
    best = scores.argmax(axis=1)
    return {"label": np.array(names)[best], "score": scores[np.arange(len(scores)), best], "scores": scores}


def _finish_scores(request: TaskRequest, encoded: EncodedRows, arrays: Mapping[str, Array]) -> dict[str, Array]:
    lengths = np.diff(encoded.starts)
    rows, width = len(lengths), row_length(request)
    variants = encoded.variants
    if variants is None:
        logprob, counts = arrays["logprob"], lengths - 1
    else:
        logprob = np.bincount(variants.rows, arrays["token_logprob"], minlength=rows).astype(np.float32)
        counts = np.bincount(variants.rows, minlength=rows).astype(np.int64)
    columns = {"logprob": logprob, "num_tokens": counts, "perplexity": _perplexity(logprob, counts)}
    if not request.options.per_token:
        return columns
    if variants is None:
        values = arrays["token_logprobs"]
    else:
        values = np.full((rows, width), np.nan, dtype=np.float32)
        values[variants.rows, variants.positions] = arrays["token_logprob"]
    ids = np.full((rows, width), -1, dtype=np.int64)
    ids[np.arange(width) < lengths[:, None]] = encoded.ids
    return {**columns, "token_logprobs": values, "token_ids": ids}


def _perplexity(logprob: Array, counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return e to the mean negative log-probability; NaN where nothing was predicted, infinity beyond float32."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = np.where(counts > 0, -logprob.astype(np.float64) / counts, np.nan)
        return np.exp(mean).astype(np.float32)
