from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from daskinfer.models.execution.measure import fit_times, measure_layers
from daskinfer.models.execution.weights import Filling
from daskinfer.models.versions import versions
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.spec.kernels import LinearKernels
from daskinfer.spec.measured import MeasuredLayer, Timing
from daskinfer.spec.plan import Numerics
from daskinfer.spec.snapshot import LayerGroup, TensorEntry
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.tensors.node_cache import load_tensors
from daskinfer.testing.fixtures.stages import request_of
from daskinfer.testing.models.tinymodels import make_tiny


def times(*pairs: tuple[int, float]) -> list[Timing]:
    return [Timing(rows=1, length=1, flops=flops, seconds=seconds) for flops, seconds in pairs]


def test_a_line_is_found_again() -> None:
    fixed, rate = fit_times(times((100, 0.3), (400, 0.6), (1600, 1.8)))
    assert fixed == pytest.approx(0.2)
    assert rate == pytest.approx(1000)


def test_a_negative_fixed_cost_is_none() -> None:
    fixed, rate = fit_times(times((100, 0.05), (1000, 1.0)))
    assert fixed == 0
    assert 1000 < (rate or 0) < 2000


@pytest.mark.parametrize("pairs", [((0, 0.1), (0, 0.3), (0, 0.2)), ((100, 0.3), (200, 0.2), (400, 0.1))])
def test_times_that_do_not_grow_have_no_rate(pairs: tuple[tuple[int, float], ...]) -> None:
    assert fit_times(times(*pairs)) == (0.2, None)


def measure(
    tmp_path: Path, directory: Path, task: str, dtype: str = "float32"
) -> tuple[tuple[MeasuredLayer, ...], list[set[str]], list[str]]:
    """Measure a checkpoint: the layers, the groups that each of them read, and what was told."""
    registry = Registry(str(tmp_path / "registry"))
    publish_checkpoint(registry, "tiny", str(directory), alias="prod")
    request = request_of(registry, "tiny@prod", task)
    reads: list[set[str]] = []
    told: list[str] = []

    def read(wanted: list[tuple[LayerGroup, TensorEntry]], targets: Mapping[str, Filling]) -> int:
        reads.append({group.name for group, _ in wanted})
        return load_tensors(registry.url, wanted, targets)

    layers = measure_layers(
        request,
        find_outline(registry.url, request, dtype),
        registry.manifest(registry.resolve("tiny@prod").snapshot),
        Numerics(dtype=dtype, attention="sdpa", kernels=LinearKernels(), threads=1, **versions()),
        read,
        [(2, 8), (4, 16)],
        lambda doing, done, total: told.append(f"{doing} {done}/{total}"),
    )
    return layers, reads, told


def test_one_layer_is_loaded_at_a_time_and_equal_ones_once(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    layers, reads, told = measure(tmp_path, tiny("BertModel"), "embed")
    assert [layer.name for layer in layers] == [f"encoder.layer.{number}" for number in range(4)]
    # The first has the embeddings with it, the last one the pooling.
    assert [layer.like for layer in layers] == [None, None, "encoder.layer.1", None]
    assert reads == [{"embeddings", "encoder.layer.0"}, {"encoder.layer.1"}, {"encoder.layer.3"}]
    assert told == [f"measuring encoder.layer.{number} {number}/4" for number in (0, 1, 3)]
    assert layers[2].timings == layers[1].timings
    for layer in layers:
        assert [(timing.rows, timing.length) for timing in layer.timings] == [(2, 8), (4, 16)]
        assert all(timing.seconds > 0 for timing in layer.timings)
    # 32 wide, 64 inside: four square matrices, two oblong ones, scores and sums over 16 tokens.
    assert layers[1].timings[1].flops == 4 * 16 * (2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 16 * 32)


def test_layers_that_attend_differently_are_not_equal(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    settings = {"num_hidden_layers": 6, "layer_types": kinds}
    directory = make_tiny(tmp_path / "gemma", "Gemma3ForCausalLM", settings=settings)
    layers, _, _ = measure(tmp_path, directory, "score", "bfloat16")
    assert [layer.like for layer in layers] == [None, None, None, "layers.1", "layers.2", None]
