from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Literal

import pytest

from daskinfer.models.execution.devices import choose_dtype, describe_cpu, find_device
from daskinfer.models.limits import memory_limit
from daskinfer.spec.plan import DeviceShape

CPU = DeviceShape(kind="cpu", name="Xeon", memory=2**34, threads=8, bf16=False, fp16=False)
NEW_CPU = CPU.model_copy(update={"name": "Granite", "bf16": True, "fp16": True})
GPU = DeviceShape(kind="cuda", name="H200", memory=2**37, threads=8, bf16=True, fp16=True)
TURING = GPU.model_copy(update={"name": "T4", "bf16": False})
PASCAL = GPU.model_copy(update={"name": "P100", "bf16": False, "fp16": False})
MAC = TURING.model_copy(update={"kind": "mps", "name": "M3"})


@pytest.mark.parametrize(
    ("stored", "device", "dtype"),
    [
        ("float32", GPU, "bfloat16"),
        ("float64", GPU, "bfloat16"),
        ("bfloat16", GPU, "bfloat16"),
        ("float16", GPU, "float16"),
        ("float32", TURING, "float16"),
        ("bfloat16", TURING, "float16"),
        ("bfloat16", MAC, "float16"),
        ("float16", PASCAL, "float32"),
        ("float32", PASCAL, "float32"),
        ("float32", CPU, "float32"),
        ("bfloat16", CPU, "float32"),
        ("float16", CPU, "float32"),
        ("float32", NEW_CPU, "float32"),
        ("bfloat16", NEW_CPU, "bfloat16"),
        ("float16", NEW_CPU, "float16"),
    ],
)
def test_auto_is_what_the_device_does_well(stored: str, device: DeviceShape, dtype: str) -> None:
    chosen, reason = choose_dtype("auto", stored, device)
    assert chosen == dtype
    assert reason.startswith(f"{dtype}: ")
    assert device.name in reason
    assert ("overflow" in reason) == (stored == "bfloat16" and dtype == "float16")


@pytest.mark.parametrize(
    ("wanted", "device", "warned"),
    [
        ("float32", CPU, False),
        ("float16", CPU, True),
        ("bfloat16", CPU, True),
        ("float16", GPU, False),
        ("bfloat16", GPU, False),
        ("bfloat16", TURING, True),
        ("float16", PASCAL, True),
    ],
)
def test_the_recipe_is_obeyed_with_a_warning(
    wanted: Literal["float32", "bfloat16", "float16"], device: DeviceShape, warned: bool
) -> None:
    chosen, reason = choose_dtype(wanted, "float32", device)
    assert chosen == wanted
    assert ("more slowly than float32" in reason) == warned


@pytest.mark.parametrize(
    ("flags", "bf16", "fp16"),
    [
        ("fpu avx512f avx512_bf16 avx512_vnni", True, False),
        ("fpu amx_bf16 amx_tile avx512_fp16", True, True),
        ("fpu avx2 avx512bw", False, False),
    ],
)
def test_cpu_is_read_off_its_flags(flags: str, bf16: bool, fp16: bool) -> None:
    text = f"processor\t: 0\nmodel name\t: A CPU: fast @ 2 GHz\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    found = describe_cpu(text)
    assert (found.kind, found.name, found.bf16, found.fp16) == ("cpu", "A CPU: fast @ 2 GHz", bf16, fp16)
    assert found.memory == memory_limit()
    assert describe_cpu("").name


SCRIPT = """
import json, sys
from daskinfer.models.execution.devices import find_device
print(json.dumps([find_device().model_dump(), "torch" in sys.modules]))
"""


def find_elsewhere(**environment: str) -> tuple[dict[str, Any], bool]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    shape, imported = json.loads(done.stdout)
    return shape, imported


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_devices_are_not_looked_for(hidden: str) -> None:
    shape, imported = find_elsewhere(CUDA_VISIBLE_DEVICES=hidden)
    assert shape["kind"] in ("cpu", "mps")
    assert imported == (shape["kind"] == "mps")


def test_threads_follow_what_the_worker_was_told() -> None:
    assert find_elsewhere(OMP_NUM_THREADS="3", CUDA_VISIBLE_DEVICES="")[0]["threads"] == 3
    told_nothing = find_elsewhere(OMP_NUM_THREADS="", CUDA_VISIBLE_DEVICES="")[0]["threads"]
    assert 1 <= told_nothing <= (os.cpu_count() or 1)


@pytest.mark.gpu
def test_gpu_is_found() -> None:
    import torch

    found = find_device()
    assert (found.kind, found.name) == ("cuda", torch.cuda.get_device_name())
    assert found.memory == torch.cuda.get_device_properties(0).total_memory
    assert found.bf16 == torch.cuda.is_bf16_supported(including_emulation=False)
