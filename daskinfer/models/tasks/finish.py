"""From what the model returned for every item to the columns that a task writes for every row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from daskinfer.models.preprocessing.encoding import Array, EncodedRows
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import row_length
from daskinfer.models.tasks.fields import label_names


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

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> files = {"config.json": b'{"id2label": {"0": "cat", "1": "dog"}}'}
    >>> rows = EncodedRows(ids=np.array([1, 2]), starts=np.array([0, 1, 2]))
    >>> request = TaskRequest("classify", ModelOptions(), "BertForSequenceClassification", files)
    >>> finish_rows(request, rows, {"scores": np.array([[0.9, 0.1], [0.2, 0.8]])})["label"]
    array(['cat', 'dog'], dtype='<U3')
    """
    if request.task == "classify":
        return name_classes(label_names(request.config), arrays["scores"])
    if request.task == "score":
        return _finish_scores(request, encoded, arrays)
    return dict(arrays)


def find_not_finite(encoded: EncodedRows, arrays: Mapping[str, Array]) -> dict[int, str]:
    """Return for which rows the model returned NaN or infinity, and where; what a task makes of it later does not count.

    Parameters
    ----------
    encoded
        The rows.
    arrays
        What the model returned, (items, ...) each.

    Examples
    --------
    >>> rows = EncodedRows(ids=np.array([1, 2]), starts=np.array([0, 1, 2]))
    >>> find_not_finite(rows, {"embedding": np.array([[1.0, 2.0], [np.nan, 3.0]])})
    {1: 'the model returned NaN in 1 of 2 numbers of embedding'}
    """
    found: dict[int, str] = {}
    for name, values in arrays.items():
        # What stands beyond a text's own tokens is nobody's result.
        if not values.size or not np.issubdtype(values.dtype, np.floating) or name == "token_logprobs":
            continue
        flat = values.reshape(len(values), -1)
        for item in np.flatnonzero(~np.isfinite(flat).all(axis=1)).tolist():
            wrong = flat[item][~np.isfinite(flat[item])]
            kinds = " and ".join(
                kind for kind, some in (("NaN", np.isnan(wrong).any()), ("infinity", np.isinf(wrong).any())) if some
            )
            row = item if encoded.variants is None else int(encoded.variants.rows[item])
            found.setdefault(
                row, f"the model returned {kinds} in {len(wrong):,} of {flat.shape[1]:,} numbers of {name}"
            )
    return found


def name_classes(names: tuple[str, ...], scores: Array) -> dict[str, Array]:
    """Return the best class as `label` (rows,), its `score` (rows,), and all `scores` (rows, classes).

    Examples
    --------
    >>> name_classes(("cat", "dog"), np.array([[0.9, 0.1], [0.2, 0.8]]))["score"]
    array([0.9, 0.8])
    """
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
    is_token = np.arange(width) < lengths[:, None]
    values = np.full((rows, width), np.nan, dtype=np.float32)
    if variants is None:
        is_predicted = is_token & (np.arange(width) > 0)
        values[is_predicted] = arrays["token_logprobs"][is_predicted]
    else:
        values[variants.rows, variants.positions] = arrays["token_logprob"]
    ids = np.full((rows, width), -1, dtype=np.int64)
    ids[is_token] = encoded.ids
    return {**columns, "token_logprobs": values, "token_ids": ids}


def _perplexity(logprob: Array, counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return e to the mean negative log-probability; NaN where nothing was predicted, infinity beyond float32."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = np.where(counts > 0, -logprob.astype(np.float64) / counts, np.nan)
        return np.exp(mean).astype(np.float32)
