"""What this process computes on, and the precision to compute in."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Literal

import psutil

from daskinfer.models.limits import core_limit, memory_limit
from daskinfer.spec.plan import DeviceShape

Precision = Literal["float32", "bfloat16", "float16"]

_HALVES: tuple[Precision, ...] = ("bfloat16", "float16")

# Drivers of NVIDIA (also under WSL and on Jetson) and AMD.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")


def find_device() -> DeviceShape:
    """Return the best device that this process may use: the first visible GPU, else the CPU.

    `CUDA_VISIBLE_DEVICES` is honoured. Where nothing hints at an accelerator, torch is not even imported.

    Examples
    --------
    >>> find_device().kind in ("cpu", "cuda", "mps")
    True
    """
    cpu = find_cpu()
    if not _may_have_accelerator():
        return cpu
    import torch  # seconds and hundreds of megabytes that a worker without an accelerator can do without

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        capability = (found.major, found.minor)
        return cpu.model_copy(
            update={
                "kind": "cuda",
                "name": found.name,
                "memory": found.total_memory,
                "bf16": capability >= (8, 0),
                "fp16": capability >= (7, 0),
            }
        )
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory()
        return cpu.model_copy(update={"kind": "mps", "memory": memory, "bf16": False, "fp16": True})
    return cpu


def find_cpu() -> DeviceShape:
    """Return this machine's CPU.

    Examples
    --------
    >>> cpu = find_cpu()
    >>> cpu.kind, cpu.threads >= 1, cpu.memory > 0
    ('cpu', True, True)
    """
    return describe_cpu(_read(Path("/proc/cpuinfo")))


def describe_cpu(cpuinfo: str) -> DeviceShape:
    r"""Return this machine's CPU, given the text of /proc/cpuinfo, which is empty where there is none.

    Examples
    --------
    >>> cpu = describe_cpu("model name : Xeon\nflags : sse avx512_bf16")
    >>> cpu.name, cpu.bf16, cpu.fp16
    ('Xeon', True, False)
    """
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    flags = set(fields.get("flags", "").split())
    return DeviceShape(
        kind="cpu",
        name=fields.get("model name") or platform.processor() or platform.machine(),
        memory=memory_limit(),
        threads=_count_threads(),
        bf16=bool(flags & {"amx_bf16", "avx512_bf16"}),
        fp16=bool(flags & {"amx_fp16", "avx512_fp16"}),
    )


def choose_dtype(wanted: Precision | Literal["auto"], stored: str, device: DeviceShape) -> tuple[Precision, str]:
    """Return the precision to compute in, and one sentence that says why.

    Parameters
    ----------
    wanted
        What the recipe asks for; it is obeyed, and the sentence warns where the device does it badly.
    stored
        Precision of the checkpoint's weights.
    device
        What will compute.

    Examples
    --------
    >>> cpu = describe_cpu("model name: Xeon")
    >>> choose_dtype("auto", "bfloat16", cpu)[0]
    'float32'
    >>> choose_dtype("bfloat16", "float32", cpu)
    ('bfloat16', 'bfloat16 as the recipe says, though Xeon computes it more slowly than float32')
    """
    does_well: dict[Precision, bool] = {"float32": True, "bfloat16": device.bf16, "float16": device.fp16}
    if wanted != "auto":
        warning = "" if does_well[wanted] else f", though {device.name} computes it more slowly than float32"
        return wanted, f"{wanted} as the recipe says{warning}"
    for half in _HALVES:
        if stored == half and does_well[half]:
            return half, f"{half}: the checkpoint is stored in it and {device.name} computes it well"
    if device.kind != "cpu" and device.bf16:
        return "bfloat16", f"bfloat16: {device.name} computes it faster than the checkpoint's {stored}"
    if device.kind != "cpu" and device.fp16:
        limit = ", though numbers above 65504 overflow in it" if stored == "bfloat16" else ""
        return "float16", f"float16: {device.name} computes it faster than float32{limit}"
    return "float32", f"float32: {device.name} gains nothing from less for a checkpoint stored in {stored}"


def _may_have_accelerator() -> bool:
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    # An empty list hides all devices, and so does a first number that no device has.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip()
    return bool(visible) and not visible.startswith("-") and any(Path(driver).exists() for driver in _DRIVERS)


def _count_threads() -> int:
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told) > 0:
        return int(told)
    # Two threads of one core share its arithmetic; affinity and cgroups may allow less than there is.
    allowed = core_limit()
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
