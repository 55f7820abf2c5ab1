"""Where peers run: an environment of their own, made from a pinned list on first use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.peer import Peer

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".peers"
PYTHON = HOME / "venv/bin/python"
PINNED = ROOT / "benchmarks/peers.txt"
_NAMES = (
    "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)


def make_environment() -> str | None:
    """Install what is pinned; return why that did not work, None where it did."""
    stamp = HOME / "installed.txt"
    wanted = PINNED.read_text() + (ROOT / "constraints.txt").read_text()
    if stamp.is_file() and stamp.read_text() == wanted:
        return None
    print(f"installing peers into {HOME.relative_to(ROOT)}, once", file=sys.stderr, flush=True)
    HOME.mkdir(exist_ok=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    # torch alone before the rest, which then takes the build that is there.
    steps = [
        [sys.executable, "-m", "venv", str(HOME / "venv")],
        [*pip, "pip"],
        [*pip, os.environ.get("TORCH", "torch")],
        [*pip, "-r", str(PINNED)],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"the peers' environment cannot be made: {done.stderr.strip().splitlines()[-1]}"
    stamp.write_text(wanted)
    return None


def list_versions() -> dict[str, str]:
    """Return the version of every distribution that peers can use; none without an environment."""
    if not PYTHON.exists():
        return {}
    done = subprocess.run([PYTHON, "-c", _NAMES], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def why_not(peer: Peer, task: str, versions: Mapping[str, str]) -> str | None:
    """Return why a peer cannot do a case here; None where it can."""
    if task not in peer.tasks:
        return f"has no {task} of its own"
    for package in peer.packages:
        if package not in versions:
            return f"{package} is not installed in .peers"
    for program in peer.programs:
        if shutil.which(program) is None:
            return f"there is no {program} here"
    return None
