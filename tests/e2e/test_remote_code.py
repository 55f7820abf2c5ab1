"""Code that comes with a checkpoint, through the command: refused, trusted, and kept with the snapshot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer import api
from daskinfer.testing.codedmodels import CODE, make_coded
from tests.e2e.command import Ended, call, overridden, start
from tests.e2e.conftest import Bench, data_bytes, read_output, run, write_rows
from tests.e2e.faults import interrupt

ROWS = 120
PLAIN = """
import json, sys
import numpy as np
from pathlib import Path
from daskinfer.models.reference import run_unsplit
from daskinfer.models.tokenizer import *
"""


@pytest.fixture
def coded(tmp_path: Path, scheduler: str) -> Bench:
    """A folder with a checkpoint that brings code, rows for it and a recipe of two stages that names the folder."""
    write_rows(tmp_path / "in.jsonl", ROWS)
    bench = Bench(tmp_path, make_coded(tmp_path / "coded"))
    bench.write_recipe(**settings(bench, cluster__address=scheduler, placement__requires={"TWO": 1}))
    return bench


def settings(bench: Bench, **changes: Any) -> dict[str, Any]:
    return {"model__checkpoint": str(bench.model), "input__partition_rows": 16, **changes}
