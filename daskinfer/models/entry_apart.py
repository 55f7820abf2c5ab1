"""A user's module built once more in another process: with another id, folder, hash seed and environment, as workers have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from daskinfer.errors import CheckpointError
from daskinfer.ids import parse_json
from daskinfer.models.unsaved import Values, digest_values
from daskinfer.spec.snapshot import EntryPoint

# What a process needs to find its libraries, caches and devices; workers of other machines have little else in common.
_KEPT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|LANG|TMPDIR|TZ)$|(LC|LD|DYLD|PYTHON|VIRTUAL|CONDA|CUDA|NVIDIA|ROCM|HIP|TORCH|HF|"
    r"TRANSFORMERS|XDG|OMP|MKL|OPENBLAS|KMP|COVERAGE|SSL)_?"
)


def refuse_process_values(entry: EntryPoint, values: Values) -> None:
    """Raise `CheckpointError` where a module comes out differently in another process.

    Where it cannot be built with few environment variables, it has those of this process.

    Parameters
    ----------
    entry
        What builds it.
    values
        What it holds beside its saved state, built with weights in this process.
    """
    few = {name: value for name, value in os.environ.items() if _KEPT.match(name)}
    found = _build(entry, few)
    if found is None:
        found = _build(entry, dict(os.environ))
    if found is None:
        return
    here = digest_values(values)
    for path in dict.fromkeys([*here, *found]):
        if here.get(path) != found.get(path):
            raise CheckpointError(
                f"model.entry {entry.function}: {path} is no saved state of the module, and differs in another process",
                hint="Process id, folder, hash seed (so the order of sets) and environment differ between processes: make "
                f"it from constants alone, or keep {path.partition('[')[0]} with register_buffer, persistent.",
            )


def _build(entry: EntryPoint, environment: dict[str, str]) -> dict[str, str] | None:
    """Return the digests of a build in a process of its own; None where it fails there."""
    paths = [str(Path(path).resolve()) for path in sys.path]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    with tempfile.TemporaryDirectory(prefix="daskinfer-entry-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "daskinfer.models.entry_process"],
            input=entry.model_dump_json(),
            capture_output=True,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": seed},
            cwd=folder,
            check=False,
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return None
    found: dict[str, str] = parse_json(lines[-1])
    return found
