"""Layer groups at rest, for tests and benchmarks of whatever reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from daskinfer.spec.snapshot import LayerGroup
from daskinfer.storage.blobs import read_header
from daskinfer.storage.filesystem import replace_bytes
from daskinfer.storage.urls import join_url

Arrays = Mapping[str, np.ndarray[Any, Any]]


def store_group(registry_url: str, name: str, arrays: Arrays) -> LayerGroup:
    """Write a layer group's blob as publishing does and return what the manifest says of it."""
    data = save(dict(arrays))
    digest = hashlib.sha256(data).hexdigest()
    blob = f"blobs/{digest[:2]}/{digest}"
    replace_bytes(join_url(registry_url, blob), data)
    return LayerGroup(name=name, size=len(data), sha256=digest, blob=blob, tensors=read_header(data, name))


def as_reference(registry_url: str, group: LayerGroup) -> LayerGroup:
    """Return a group as it would be had its checkpoint been published by reference, its blob being the user's file."""
    url = join_url(registry_url, str(group.blob))
    entries = tuple(entry.model_copy(update={"file": url}) for entry in group.tensors)
    return group.model_copy(update={"blob": None, "tensors": entries})
