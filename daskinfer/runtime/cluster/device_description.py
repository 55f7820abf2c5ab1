"""What a process computes on, with what is measured of it once per machine."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import version
from math import inf
from pathlib import Path

from daskinfer.errors import DaskinferError
from daskinfer.ids import canonical_json, digest_of, parse_json, shorten
from daskinfer.models.execution.devices import find_device
from daskinfer.spec.kernels import LinearKernels
from daskinfer.spec.plan import DeviceShape
from daskinfer.storage.objects.create_if_absent import create
from daskinfer.storage.objects.filesystem import read_record, replace_bytes
from daskinfer.storage.tensors.node_cache import private_folder


def describe_device() -> DeviceShape:
    """Return the device of this process, and of a CPU how fast oneDNN is on it.

    That is measured once per machine and version of torch, and kept in the cache, so that all processes there say the
    same.

    Examples
    --------
    >>> device = describe_device()
    >>> device.kind != "cpu" or device == describe_device()
    True
    """
    device = find_device()
    return device if device.kind != "cpu" else device.model_copy(update={"onednn": _measure_once(device.name)})


@cache
def _measure_once(cpu: str) -> dict[str, float]:
    folder = private_folder("kernels")
    place = None if folder is None else folder / f"{shorten(digest_of([cpu, version('torch')]))}.json"
    if place is not None and (known := _read(place)) is not None:
        return known
    # Imports torch, which a process that finds it measured can do without.
    from daskinfer.models.execution.kernels import measure_onednn

    measured = measure_onednn()
    if place is None:
        return measured
    data = canonical_json(measured)
    with suppress(OSError, DaskinferError):
        # Another process may have been first; what is no measurement makes room for one.
        if not create(str(place), data) and _read(place) is None:
            replace_bytes(str(place), data)
    found = _read(place)
    return measured if found is None else found


def _read(place: Path) -> dict[str, float] | None:
    with suppress(OSError, DaskinferError, ValueError, TypeError, AttributeError):
        speeds = {str(size): float(speed) for size, speed in parse_json(read_record(str(place))).items()}
        if speeds.keys() <= LinearKernels.model_fields.keys() and all(0 < speed < inf for speed in speeds.values()):
            return speeds
    return None
