"""Linear layers by oneDNN: where they apply, what they leave alone, and what they compute."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from daskinfer.errors import JobFailed
from daskinfer.models.execution import onednn
from daskinfer.models.execution.kernels import measure_onednn, use_kernels
from daskinfer.spec.kernels import LinearKernels

ALL = LinearKernels(small="onednn", medium="onednn", large="onednn")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that oneDNN multiplied by."""
    multiply = onednn.find_linear()
    if multiply is None:
        pytest.skip("this build of torch has no oneDNN")
    seen: list[tuple[int, ...]] = []

    def count(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(weight.shape))
        assert multiply is not None
        return multiply(rows, weight, bias)

    monkeypatch.setattr(onednn, "find_linear", lambda: count)
    return seen


def by(kernels: LinearKernels, module: Any, *rows: Tensor) -> Tensor:
    def forward(inputs: dict[str, Tensor], received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (module(*received),)

    with torch.inference_mode():
        (result,) = use_kernels(forward, kernels)({}, rows)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (7,), (1, 7), (4, 2, 3, 7)])
def test_linear_layers_of_any_shape_are_computed_alike(
    bias: bool, shape: tuple[int, ...], calls: list[tuple[int, ...]]
) -> None:
    module, rows = nn.Linear(7, 11, bias=bias), torch.randn(shape)
    result = by(ALL, module, rows)
    assert calls == [(11, 7)]
    assert result.shape == (*shape[:-1], 11)
    torch.testing.assert_close(result, module(rows), rtol=1e-5, atol=1e-6)


def test_transposed_rows_and_layers_of_gpt2_are_computed_alike(calls: list[tuple[int, ...]]) -> None:
    module, rows = Conv1D(11, 7), torch.randn(7, 5).t()  # type: ignore[no-untyped-call]
    nn.init.normal_(module.bias)
    torch.testing.assert_close(by(ALL, module, rows), module(rows), rtol=1e-5, atol=1e-6)
    assert calls == [(11, 7)]


def test_what_is_no_linear_layer_in_float32_goes_its_own_way(calls: list[tuple[int, ...]]) -> None:
    half = nn.Linear(7, 11).bfloat16()
    assert torch.equal(by(ALL, half, (rows := torch.randn(3, 7)).bfloat16()), half(rows.bfloat16()))
    assert by(ALL, nn.Linear(7, 11), torch.ones(0, 7)).shape == (0, 11)
    vector = torch.ones(7)
    assert by(ALL, lambda rows: functional.linear(rows, vector), torch.ones(2, 7)).tolist() == [7.0, 7.0]
    matrix = torch.ones(2, 2)
    scaled = by(ALL, lambda rows: torch.addmm(matrix, rows, matrix, beta=2, alpha=3), matrix)
    assert scaled.tolist() == [[8.0, 8.0], [8.0, 8.0]]
    assert not calls


@pytest.mark.parametrize(
    "bias", [torch.arange(22.0)[::2], torch.arange(1.0, 2.0).expand(11)], ids=["every second", "one"]
)
def test_a_bias_whose_numbers_do_not_lie_side_by_side_is_added_as_it_is(bias: Tensor) -> None:
    weight, rows = torch.randn(11, 7), torch.randn(3, 7)
    result = by(ALL, lambda rows: functional.linear(rows, weight, bias), rows)
    torch.testing.assert_close(result, functional.linear(rows, weight) + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_derivatives_within_a_forward_are_those_of_the_module() -> None:
    layer, rows = nn.Linear(7, 7).requires_grad_(False), torch.randn(3, 7)

    def energy(rows: Tensor) -> Tensor:
        return torch.tanh(rows + layer(rows)).sum()

    def by_grad(rows: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            place = rows.clone().requires_grad_()
            return torch.autograd.grad(energy(place), place)[0]

    def by_jvp(rows: Tensor) -> Any:
        return torch.func.jvp(energy, (rows,), (torch.ones_like(rows),))[1]

    for derive in (by_grad, torch.func.grad(energy), by_jvp):
        assert torch.equal(by(ALL, derive, rows), derive(rows))


def test_layers_under_autocast_and_vmap_go_their_own_way(calls: list[tuple[int, ...]]) -> None:
    layer, rows = nn.Linear(7, 11), torch.randn(3, 7)

    def lower(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = layer(rows)
        assert isinstance(result, Tensor)
        return result

    assert by(ALL, lower, rows).dtype == torch.bfloat16
    assert torch.equal(by(ALL, lower, rows), lower(rows))
    torch.testing.assert_close(by(ALL, torch.vmap(layer), rows), layer(rows), rtol=1e-5, atol=1e-6)
    assert not calls


def test_operands_of_any_layout_are_computed_alike(calls: list[tuple[int, ...]]) -> None:
    draw = random.Random(0)

    def lay_out(shape: tuple[int, ...]) -> Tensor:
        kinds = {
            "plain": lambda: torch.randn(shape),
            "every second": lambda: torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2],
            "part": lambda: torch.randn(*shape[:-1], shape[-1] + 5)[..., 2:-3],
            "expanded": lambda: torch.randn(1, *shape[1:]).expand(shape),
            "every third": lambda: torch.randn(3 * shape[0], *shape[1:])[::3],
            "turned": lambda: torch.randn(*shape[::-1]).permute(*reversed(range(len(shape)))),
        }
        return kinds[draw.choice(list(kinds))]()

    for _ in range(400):
        inputs, outputs = draw.choice([1, 3, 16, 33]), draw.choice([1, 5, 31])
        rows = lay_out((*draw.choice([(), (1,), (5,), (17,), (2, 3), (2, 3, 2)]), inputs))
        weight, bias = lay_out((outputs, inputs)), draw.choice([None, lay_out((outputs,))])
        with torch.inference_mode():
            expected = functional.linear(rows.contiguous(), weight.contiguous())
        result = by(ALL, lambda rows, weight=weight, bias=bias: functional.linear(rows, weight, bias), rows)
        torch.testing.assert_close(result, expected if bias is None else expected + bias, rtol=1e-4, atol=1e-5)
    assert len(calls) > 200


def test_the_size_of_a_layer_decides(calls: list[tuple[int, ...]]) -> None:
    kernels = LinearKernels(medium="onednn")
    for outputs in (128, 512, 8192):
        by(kernels, nn.Linear(256, outputs), torch.ones(2, 256))
    assert calls == [(512, 256)]


def test_bits_of_a_row_do_not_depend_on_the_others(calls: list[tuple[int, ...]]) -> None:
    module, rows = nn.Linear(384, 96), torch.randn(64, 384)
    whole = by(ALL, module, rows)
    for first, last in ((0, 2), (3, 19), (40, 64)):
        assert torch.equal(by(ALL, module, rows[first:last]), whole[first:last])


def test_a_plan_with_onednn_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "find_linear", lambda: None)
    with pytest.raises(JobFailed, match=r"computes linear layers by oneDNN, which torch .* does not have"):
        use_kernels(lambda inputs, received: received, ALL)
    assert measure_onednn() == {}


def test_onednn_is_not_there_where_one_of_the_two_multiplies_in_less_than_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lower(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (rows.bfloat16() @ weight.bfloat16().t()).float() + bias

    monkeypatch.setattr(functional, "linear", lower)
    assert onednn.find_linear.__wrapped__() is None


def test_a_product_that_is_wrong_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(rows, weight, bias) * (1.0 if weight.shape[0] == 256 else 1.001)

    monkeypatch.setattr(onednn, "find_linear", lambda: wrong)
    assert measure_onednn().keys() == {"small"}


def test_the_private_operator_is_the_one_that_is_known() -> None:
    """Fails where another version of torch takes other arguments: adapt `onednn.py`."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("this build of torch has no oneDNN")
    operator = torch.ops.mkldnn._linear_pointwise.default
    assert str(operator._schema) == (
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm)"
        " -> Tensor Y"
    )
