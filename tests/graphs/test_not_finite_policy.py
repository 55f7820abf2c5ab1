"""What becomes of rows for which the model returned NaN or infinity."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daskinfer.errors import NotFinite
from daskinfer.graphs.tasks import _quarantine_not_finite

ROWS: Any = SimpleNamespace(
    partition=SimpleNamespace(first_row=10), positions=np.array([0, 2]), sources=["a.jsonl"] * 2, lines=[1, 3]
)


def context_of(task: str, policy: str) -> Any:
    recipe = SimpleNamespace(model=SimpleNamespace(task=task), errors=SimpleNamespace(nan=policy))
    return SimpleNamespace(record=SimpleNamespace(recipe=recipe))


@pytest.mark.parametrize(
    ("task", "policy", "dropped"),
    [
        *((task, "auto", {2}) for task in ("embed", "classify", "score")),
        ("forward", "auto", set()),
        ("embed", "keep", set()),
        ("forward", "quarantine", {2}),
    ],
)
def test_the_policy_decides(task: str, policy: str, dropped: set[int]) -> None:
    assert _quarantine_not_finite(context_of(task, policy), ROWS, {2: "NaN"}) == dropped
    assert _quarantine_not_finite(context_of(task, policy), ROWS, {}) == set()


def test_the_first_may_stop_the_job() -> None:
    with pytest.raises(NotFinite, match=r"row 12, a\.jsonl:3: NaN") as stopped:
        _quarantine_not_finite(context_of("embed", "stop"), ROWS, {2: "NaN"})
    assert stopped.value.recurs and stopped.value.hint
    assert _quarantine_not_finite(context_of("embed", "stop"), ROWS, {}) == set()
