from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from daskinfer.models.limits import core_limit, memory_limit

TOTAL = psutil.virtual_memory().total


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        pytest.param("0::/", {"memory.max": "8000000"}, 8_000_000, id="a container under v2"),
        pytest.param("0::/", {"memory.max": "max", "memory.high": "7000000"}, 7_000_000, id="v2, high alone"),
        pytest.param("0::/", {"memory.max": "max"}, TOTAL, id="v2 without a limit"),
        pytest.param(
            "0::/system.slice/job/step",
            {"system.slice/job/memory.max": "6000000", "system.slice/job/step/memory.max": "max"},
            6_000_000,
            id="a batch system under v2 limits a group above",
        ),
        pytest.param("4:memory:/", {"memory/memory.limit_in_bytes": "8000000"}, 8_000_000, id="a container under v1"),
        pytest.param(
            "4:memory:/docker/abc",
            {"memory/memory.limit_in_bytes": "8000000"},
            8_000_000,
            id="v1, the path is the host's and only the container's group is there",
        ),
        pytest.param(
            "4:memory:/slurm/job",
            {
                "memory/slurm/job/memory.limit_in_bytes": "5000000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            5_000_000,
            id="a batch system under v1",
        ),
        pytest.param(
            "4:cpu,memory:/a\n0::/", {"cpu,memory/a/memory.limit_in_bytes": "4000000"}, 4_000_000, id="v1, joint mount"
        ),
        pytest.param("1:cpu:/", {"cpu/memory.max": "1"}, TOTAL, id="another controller"),
        pytest.param("broken", {}, TOTAL, id="no membership"),
    ],
)
def test_the_least_limit_of_memory_counts(tmp_path: Path, membership: str, files: dict[str, str], limit: int) -> None:
    write(tmp_path / "groups", files)
    write(tmp_path, {"cgroup": membership})
    assert memory_limit(tmp_path / "groups", tmp_path / "cgroup") == limit


def test_without_cgroups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert memory_limit(tmp_path / "none", tmp_path / "none") == TOTAL


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/job", {"job/cpu.max": "50000 100000"}),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_a_quota_of_time_counts_as_cores(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    write(tmp_path / "groups", files)
    write(tmp_path, {"cgroup": membership})
    assert core_limit(tmp_path / "groups", tmp_path / "cgroup") == 1


def test_no_quota_leaves_the_cores(tmp_path: Path) -> None:
    unlimited = {"job/cpu.max": "max 100000", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    write(tmp_path / "groups", unlimited)
    write(tmp_path, {"cgroup": "0::/job\n1:cpu:/"})
    assert core_limit(tmp_path / "groups", tmp_path / "cgroup") == core_limit(tmp_path / "none", tmp_path / "none")
