"""The log of a whole job: driver, workers, and a model of the user's own in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskinfer.logs import FIELDS
from tests.e2e.command import call
from tests.e2e.conftest import Bench, daskinfer

TALKATIVE = """
import logging
import torch
from torch import nn


class Talkative(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, features):
        logging.getLogger("talkative").info("forward of %d rows", len(features))
        for layer in self.layers:
            features = layer(features)
        return features


def build():
    torch.manual_seed(0)
    return Talkative()
"""


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_drivers_records(warm: Bench) -> None:
    log = warm.folder / "log.jsonl"
    ended = call("run", "recipe.yaml", "--json", "--log-file", "log.jsonl", "--log-format", "json", cwd=warm.folder)
    assert ended.code == 0, ended.err
    records = [record for record in read(log) if record["logger"].startswith("daskinfer.runtime")]
    messages = [record["message"] for record in records]
    assert messages[0] == "job begun" and messages[-2:] == ["output sealed", "job done"]
    assert messages.count("partition committed") == 5 and messages.count("shard loaded") == 2
    for record in records:
        assert (record["job"], record["epoch"], record["snapshot"]) == (
            ended.json["job"],
            1,
            ended.json["snapshot"],
        )
    committed = [record for record in records if record["message"] == "partition committed"]
    assert sorted(record["partition"] for record in committed) == list(range(5))
    assert sum(record["rows_out"] for record in committed) == 300
    assert {record["stage"] for record in records if record["message"] == "shard loaded"} == {0, 1}
    assert not ended.err.count("{"), "records went to the terminal as well"


def test_what_cannot_be_logged_to_is_said(warm: Bench) -> None:
    ended = call("run", "recipe.yaml", "--log-file", "no/such/folder/log", cwd=warm.folder)
    assert ended.code == 2 and "--log-file" in ended.err and "cannot be written" in ended.err


@pytest.mark.late
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_record_of_a_task_has_the_fields(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    values = np.random.default_rng(0).standard_normal((48, 8), dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 8)
    pq.write_table(pa.table({"features": column}), tmp_path / "in.parquet")
    recipe = {
        "daskinfer": 1,
        "name": "talk",
        "model": {"checkpoint": "talk@prod", "task": "forward"},
        "input": {"url": "in.parquet", "columns": {"features": "features"}, "partition_rows": 24},
        "output": {"url": "out.zarr"},
        "pipeline": {"stages": 2, "microbatch_tokens": 10},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    env = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}"}
    publish = ("checkpoint", "publish", "talk", "--entry", "talkative:build", "--alias", "prod")
    assert call(*publish, cwd=tmp_path, env=env).code == 0
    words = ("run", "recipe.yaml", "--json", "--log-file", "log", "--log-format", "json", "--log-level", "debug")
    job = daskinfer(*words, cwd=tmp_path, env=env)  # with workers of its own, which take their time
    out, err = job.communicate(timeout=280)
    assert job.returncode == 0, err
    printed = json.loads(out)
    records = read(tmp_path / "log")
    spoken = [record for record in records if record["logger"] == "talkative" and "partition" in record]
    computed = [record for record in records if record["message"] == "microbatch computed"]
    assert len(spoken) >= len(computed) > 6
    for record in (*spoken, *computed):
        assert all(name in record for name in FIELDS), record
        assert (record["job"], record["snapshot"]) == (printed["job"], printed["snapshot"])
    assert {record["stage"] for record in spoken} == {0, 1}
    assert len({record["process"] for record in computed}) == 2
