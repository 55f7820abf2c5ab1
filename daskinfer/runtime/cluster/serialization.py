"""How Dask moves and counts tensors.

distributed's own serialiser fails on bfloat16 and float8 tensors with no fallback, and `sizeof` sees 80 bytes in a
tensor of any size, so that memory limits are blind. Ours moves any tensor as raw bytes and counts all of them.
"""

from __future__ import annotations

from importlib import import_module

from dask.sizeof import sizeof
from distributed.protocol import dask_deserialize, dask_serialize

from daskinfer.graphs.sizes import register_sizes


def register_serializers() -> None:
    """Register serialisers and sizes in this process, each when the first such value turns up.

    Examples
    --------
    >>> import numpy as np
    >>> from daskinfer.graphs.handoff import Handoff
    >>> register_serializers()
    >>> sizeof(Handoff({"embedding": np.zeros(1000)}, trail=()))
    8500
    """
    for registry in (dask_serialize, dask_deserialize, sizeof):
        registry.register_lazy("torch", _register_tensors)
    sizeof.register_lazy("daskinfer", register_sizes)


def _register_tensors() -> None:
    # Registered lazily by distributed itself, this would come after ours and replace it. Its parameters and modules
    # are made of tensors, hence of ours.
    import_module("distributed.protocol.torch")
    tensors = import_module("daskinfer.models.tensors")
    dask_serialize.register(tensors.Tensor)(tensors.tensor_frames)
    dask_deserialize.register(tensors.Tensor)(tensors.tensor_from_frames)
    sizeof.register(tensors.Tensor)(tensors.tensor_nbytes)
