"""bfloat16 as a Zarr data type: zarr-python has none, so importing this module registers the name the spec reserves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import ml_dtypes
import numpy as np
from zarr.core.dtype.npy.float import BaseFloat
from zarr.dtype import data_type_registry


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """The Zarr v3 data type `bfloat16`, `ml_dtypes.bfloat16` in memory, stored little-endian."""

    dtype_cls = type(np.dtype(ml_dtypes.bfloat16))
    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    @property
    def item_size(self) -> int:
        """Bytes of one element."""
        return 2

    def to_native_dtype(self) -> np.dtype[Any]:
        """Return the numpy dtype of an element.

        Raises
        ------
        ValueError
            For big-endian data, which ml_dtypes cannot represent.
        """
        if self.endianness != "little":
            raise ValueError("bfloat16 arrays are read and written little-endian only")
        native: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return native


data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
