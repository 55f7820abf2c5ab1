"""An alias that many processes move without a pause, while jobs begin, run and are resumed on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from daskinfer import api
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.models.tinymodels import make_tiny_bert
from daskinfer.testing.stress.campaigns import campaign_size
from tests.e2e.conftest import Bench, data_bytes, make_bench, read_output, run
from tests.e2e.faults import commits, interrupt

pytestmark = [pytest.mark.slow, pytest.mark.late, pytest.mark.campaign]

ROWS, PARTITION = 4_800, 32
MOVER = """
import sys
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
registry = Registry(sys.argv[1])
for turn in range(int(sys.argv[2])):
    set_alias(registry, "tiny", "prod", "v1" if turn % 2 else "v2")
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    found = make_bench(tmp_path_factory.mktemp("moving"), tiny_model, ROWS)
    second = make_tiny_bert(found.folder / "second", layers=4, seed=1)
    api.publish("tiny", str(second), registry=str(found.folder / "work/registry"))
    return found


@pytest.mark.timeout(900)
def test_one_digest_whatever_the_alias_does(bench: Bench, scheduler: str) -> None:
    processes, moves = campaign_size(4, 8), campaign_size(160, 1000)
    registry = Registry(str(bench.folder / "work/registry"))
    before = len(registry.alias_history("tiny", "prod"))
    command = [sys.executable, "-c", MOVER, registry.url, str(moves // processes)]
    movers = [subprocess.Popen(command) for _ in range(processes)]
    jobs = 0
    while any(mover.poll() is None for mover in movers) or not jobs:
        recipe = bench.recipe(f"job-{jobs}.zarr", input__partition_rows=PARTITION)
        interrupt(recipe, scheduler, rows=PARTITION)
        run(recipe, scheduler)
        jobs += 1
    assert [mover.wait() for mover in movers] == [0] * processes
    assert len(registry.alias_history("tiny", "prod")) == before + moves

    for version in ("v1", "v2"):
        run(
            bench.recipe(f"{version}.zarr", model__checkpoint=f"tiny@{version}", input__partition_rows=PARTITION),
            scheduler,
        )
    names = {registry.resolve(f"tiny@{version}").snapshot: version for version in ("v1", "v2")}
    for number in range(jobs):
        output = bench.folder / f"job-{number}.zarr"
        (snapshot,) = {record["snapshot"] for record in commits(output).values()}
        assert json.loads((output / "_MANIFEST.json").read_text())["snapshots"] == [snapshot]
        assert data_bytes(output) == data_bytes(bench.folder / f"{names[snapshot]}.zarr")
        assert len(read_output(output)["embedding"]) == ROWS
