from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.knobs import LOCAL_CHUNK
from daskinfer.models.architecture import build_model, keep_float32
from daskinfer.models.execution.weights import Filling, fill_module, find_entries
from daskinfer.models.tensors import ALIGNMENT
from daskinfer.spec.snapshot import LayerGroup, Manifest, TensorEntry
from daskinfer.storage.tensors.range_reads import stream_tensors
from daskinfer.testing.fixtures.groups import store_group

Reader = Callable[[Mapping[str, Filling]], int]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])


@pytest.fixture(autouse=True)
def small_chunks() -> Iterator[None]:
    with LOCAL_CHUNK.override(4096):
        yield


class Sample(nn.Module):
    """A tied pair, a buffer of integers, a buffer of floats, a scalar and a module that is not wanted."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embed = nn.Embedding(300, 33, dtype=dtype)
            self.norm = nn.BatchNorm1d(33, dtype=dtype)
            self.head = nn.Linear(33, 300, dtype=dtype)
            self.other = nn.Linear(2, 2)
            self.register_parameter("scale", nn.Parameter(torch.empty((), dtype=dtype)))
        self.head.weight = self.embed.weight


def make_arrays(dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(1)
    shapes = {
        "embed.weight": (300, 33),
        "norm.weight": (33,),
        "norm.bias": (33,),
        "norm.running_mean": (33,),
        "norm.running_var": (33,),
        "head.bias": (300,),
        "scale": (),
    }
    arrays = {name: np.asarray(random.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    return {**arrays, "norm.num_batches_tracked": np.array(5, dtype=np.int64)}


def prepare(tmp_path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[dict[str, TensorEntry], Reader]:
    group = store_group(str(tmp_path), "g", arrays)
    pairs = [(group, entry) for entry in group.tensors]
    return {entry.name: entry for entry in group.tensors}, partial(stream_tensors, str(tmp_path), pairs)


def values(module: nn.Module) -> dict[str, Tensor]:
    both = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return {name: tensor for name, tensor in both if not name.startswith("other.")}


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_come_in_the_modules_precision(
    tmp_path: Path, device: str, precision: torch.dtype, stored: Any
) -> None:
    module = Sample(precision)
    arrays = make_arrays(stored)
    wanted, read = prepare(tmp_path, arrays)
    assert fill_module(module, wanted, read, device=device) == sum(array.nbytes for array in arrays.values())
    found = values(module)
    assert found.keys() == arrays.keys() | {"head.weight"}
    for name, array in arrays.items():
        if array.dtype == ml_dtypes.bfloat16:
            source = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            source = torch.from_numpy(array)
        expected = source.to(precision) if source.is_floating_point() else source
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name].cpu(), expected)
        assert found[name].data_ptr() % ALIGNMENT == 0
        assert not found[name].requires_grad
    assert module.head.weight is module.embed.weight
    assert module.other.weight.is_meta
    assert module.state_dict().keys() == Sample().state_dict().keys()


def test_what_is_tied_in_the_snapshot_shares_memory(tmp_path: Path) -> None:
    module = Sample()
    module.head.weight = nn.Parameter(torch.empty((300, 33), device="meta"))
    arrays = make_arrays()
    wanted, read = prepare(tmp_path, arrays)
    fill_module(module, {**wanted, "head.weight": wanted["embed.weight"]}, read)
    assert module.head.weight is module.embed.weight
    assert np.array_equal(module.head.weight.numpy(), arrays["embed.weight"])


def test_some_paths_keep_float32(tmp_path: Path) -> None:
    module = Sample(torch.bfloat16)
    module.norm.float()
    arrays = make_arrays()
    wanted, read = prepare(tmp_path, arrays)
    fill_module(module, wanted, read)
    assert np.array_equal(module.norm.weight.detach().numpy(), arrays["norm.weight"])
    assert {name for name, tensor in values(module).items() if tensor.dtype == torch.float32} == {
        name for name in arrays if name.startswith("norm.") and name != "norm.num_batches_tracked"
    }


def test_transformers_says_what_keeps_float32() -> None:
    config = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    for dtype, kept in ((torch.float16, {".wo."}), (torch.bfloat16, set())):
        model = build_model(config, "T5EncoderModel").to(dtype)
        keep_float32(model, dtype)
        for name, parameter in model.named_parameters():
            assert (parameter.dtype == torch.float32) == any(part in name for part in kept), name
    other = Sample(torch.float16)
    keep_float32(other, torch.float16)
    assert other.embed.weight.dtype == torch.float16


def refuse(tmp_path: Path, path: str, array: np.ndarray[Any, Any]) -> str:
    wanted, read = prepare(tmp_path, {path: array})
    with pytest.raises(CheckpointError) as error:
        fill_module(Sample(), wanted, read)
    assert path in error.value.message and error.value.hint
    return error.value.message


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    message = refuse(tmp_path, "head.bias", np.zeros(301, dtype=np.float32))
    assert "shape (301,), but the model has (300,)" in message
    assert "nothing called" in refuse(tmp_path, "tail.bias", np.zeros(3, dtype=np.float32))
    assert "stored as I32, the model has torch.float32" in refuse(tmp_path, "head.bias", np.zeros(300, dtype=np.int32))
    assert "stored as C64, which is not" in refuse(tmp_path, "head.bias", np.zeros(300, dtype=np.complex64))


def test_wrong_sizes_and_tied_shapes_are_refused(tmp_path: Path) -> None:
    wanted, read = prepare(tmp_path, make_arrays())
    entry = wanted["head.bias"]
    with pytest.raises(CheckpointError, match=r"head\.bias: its bytes do not match"):
        fill_module(Sample(), {"head.bias": entry.model_copy(update={"end": entry.end - 4})}, read)
    with pytest.raises(CheckpointError, match=r"norm\.bias: shape \(33,\), but the model has \(300,\)"):
        fill_module(Sample(), {"norm.bias": wanted["norm.bias"], "head.bias": wanted["norm.bias"]}, read)


def test_entries_are_found_by_name_and_by_tie(tmp_path: Path) -> None:
    group = store_group(str(tmp_path), "embed", {"embed.weight": np.zeros((3, 2), dtype=np.float32)})
    manifest = make_manifest(group)
    entry = group.tensors[0]
    found = find_entries(manifest, {"model.embed.weight": "embed.weight", "model.head.weight": "head.weight"})
    assert found == {"model.embed.weight": (group, entry), "model.head.weight": (group, entry)}
    with pytest.raises(CheckpointError, match=r"tensor norm\.bias is missing from the snapshot of mini"):
        find_entries(manifest, {"model.norm.bias": "norm.bias"})


def make_manifest(group: LayerGroup) -> Manifest:
    return Manifest(
        model="mini",
        architecture="Sample",
        dtype="float32",
        files=(),
        groups=(group,),
        tied={"head.weight": "embed.weight"},
    )


CHILD = """
import json, re, sys
from functools import partial
from pathlib import Path
import torch
from torch import nn
from daskinfer.models.execution.weights import fill_module
from daskinfer.spec.snapshot import LayerGroup
from daskinfer.storage.tensors.node_cache import load_tensors

def status(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

groups = [LayerGroup.model_validate(group) for group in json.load(sys.stdin)]
pairs = [(group, entry) for group in groups for entry in group.tensors]
module = nn.Module()
for group, entry in pairs:
    meta = nn.Parameter(torch.empty(entry.shape, dtype=getattr(torch, sys.argv[2]), device="meta"))
    module.register_parameter(entry.name, meta)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
fill_module(module, {entry.name: entry for _, entry in pairs}, partial(load_tensors, sys.argv[1], pairs))
print((status("VmHWM") - before) / sum(tensor.nbytes for tensor in module.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize(("dtype", "rows"), [("float32", 2500), ("bfloat16", 5000)])
@LOCAL_CHUNK.override(LOCAL_CHUNK.default)
def test_peak_memory_is_the_shard(tmp_path: Path, dtype: str, rows: int) -> None:
    groups = [store_group(str(tmp_path), name, {name: np.ones((rows, 5000), dtype=np.float32)}) for name in "abcd"]
    text = json.dumps([group.model_dump() for group in groups])
    command = [sys.executable, "-c", CHILD, str(tmp_path), dtype]
    child = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert 0.9 < float(child.stdout) < 1.2  # one of the four tensors more would be 1.25
