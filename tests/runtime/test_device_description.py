"""A device's description: measured once per machine, the same in every process."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskinfer.models.execution import kernels
from daskinfer.runtime.cluster import device_description
from daskinfer.runtime.cluster.device_description import describe_device


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device_description._measure_once.cache_clear()


def measuring(monkeypatch: pytest.MonkeyPatch, *speeds: dict[str, float]) -> None:
    found = iter(speeds)
    monkeypatch.setattr(kernels, "measure_onednn", lambda: next(found))


def test_all_processes_of_a_machine_go_by_the_first_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, {"large": 2.0})
    assert describe_device().onednn == {"large": 2.0}
    device_description._measure_once.cache_clear()
    assert describe_device().onednn == {"large": 2.0}


@pytest.mark.parametrize("damage", ["", "[1", '{"large": NaN}', '{"large": 1e400}', '{"huge": 2.0}', "[" * 100_000])
def test_a_damaged_measurement_is_made_anew_and_kept(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, {"large": 2.0}, {"large": 3.0})
    describe_device()
    (file,) = (tmp_path / "cache/kernels").iterdir()
    file.write_text(damage)
    for _ in range(2):
        device_description._measure_once.cache_clear()
        assert describe_device().onednn == {"large": 3.0}


def test_without_a_place_to_keep_it_a_process_measures_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, {"large": 2.0})
    monkeypatch.setattr(device_description, "private_folder", lambda name: None)
    assert describe_device().onednn == {"large": 2.0}
