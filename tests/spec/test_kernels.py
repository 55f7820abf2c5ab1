"""The choice among kernels."""

from __future__ import annotations

import pytest

from daskinfer.errors import RecipeError
from daskinfer.spec.kernels import LinearKernels, choose_kernels


@pytest.mark.parametrize(
    "wanted, speeds, chosen, reason",
    [
        ("torch", [{"large": 2.0}], {}, "torch, as the recipe says"),
        ("onednn", [{"large": 0.5}], {"small", "medium", "large"}, "onednn, as the recipe says"),
        ("auto", [{"small": 0.3, "medium": 1.1, "large": 2.0}], {"large"}, "oneDNN for large layers (2.0 times"),
        ("auto", [{"medium": 3.0, "large": 2.0}, {"medium": 0.9, "large": 1.3}], {"large"}, "(1.3 times as fast"),
        ("auto", [{"large": 2.0}, {}], {}, "torch: oneDNN is not there or was not measured"),
        ("auto", [{"small": 0.2, "large": 1.04}], {}, "at best 1.04 times as fast here"),
        ("auto", [], {}, "torch: oneDNN is not there or was not measured"),
    ],
)
def test_the_fastest_of_every_size_is_taken_where_all_workers_gain(
    wanted: str, speeds: list[dict[str, float]], chosen: set[str], reason: str
) -> None:
    kernels, told = choose_kernels(wanted, "float32", "cpu", speeds)  # type: ignore[arg-type]
    assert {size for size, kernel in kernels.model_dump().items() if kernel == "onednn"} == set(chosen)
    assert reason in told


def test_onednn_is_refused_where_a_worker_lacks_it_and_told_to_be_of_no_effect_elsewhere() -> None:
    with pytest.raises(RecipeError, match=r"torch on 1 of 2 worker\(s\) does not have it"):
        choose_kernels("onednn", "float32", "cpu", [{"large": 2.0}, {}])
    for dtype, device in (("bfloat16", "cpu"), ("float32", "cuda")):
        kernels, told = choose_kernels("onednn", dtype, device, [{}])
        assert kernels == LinearKernels()
        assert told.endswith(f"this is {dtype} on {device}")
        assert choose_kernels("auto", dtype, device, [{}])[1] == ""


def test_a_size_ends_with_its_last_weight() -> None:
    kernels = LinearKernels(medium="onednn")
    assert [kernels.of(weights) for weights in (2**16, 2**16 + 1, 2**20, 2**20 + 1)] == [
        "torch",
        "onednn",
        "onednn",
        "torch",
    ]
