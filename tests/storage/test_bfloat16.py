from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr

import daskinfer.storage.activations.bfloat16  # noqa: F401

EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256)


@pytest.mark.parametrize("shards", [None, (128, 256)])
def test_every_bit_pattern_survives(tmp_path: Path, shards: tuple[int, int] | None) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(256, 256),
        chunks=(64, 256),
        shards=shards,
        dtype=ml_dtypes.bfloat16,
        config={"write_empty_chunks": True},  # no comparison with the fill value, which warns of signalling NaNs
    )
    array[:] = EVERY_PATTERN
    opened = zarr.open_array(tmp_path / "a.zarr", mode="r")
    found = np.asarray(opened[:])
    assert opened.dtype == EVERY_PATTERN.dtype
    assert np.array_equal(found.view(np.uint16), EVERY_PATTERN.view(np.uint16))


def test_metadata_is_the_specs(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(4,), dtype="bfloat16", compressors=None, fill_value=1.5)
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    assert metadata["data_type"] == "bfloat16"
    assert metadata["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}]
    assert metadata["fill_value"] == 1.5
    assert np.array_equal(np.asarray(zarr.open_array(tmp_path / "a.zarr", mode="r")[:]), [1.5] * 4)


def test_big_endian_is_refused_and_not_misread(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(4,), dtype="bfloat16", compressors=None)[:] = 1
    path = tmp_path / "a.zarr" / "zarr.json"
    path.write_text(path.read_text().replace('"little"', '"big"'))
    with pytest.raises(ValueError, match="little-endian only"):
        zarr.open_array(tmp_path / "a.zarr", mode="r")[:]


def test_readers_without_it_fail_loudly(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(4,), dtype="bfloat16")[:] = 1
    script = "import sys, zarr; zarr.open_array(sys.argv[1], mode='r')[:]"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.zarr")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "bfloat16" in done.stderr
