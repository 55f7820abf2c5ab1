"""What peers compute by hand is what transformers computes of each row alone, however batches fall."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.peers.loop import run_loop
from benchmarks.peers.plain import pack, split
from benchmarks.work import Work
from daskinfer.testing.models.tinymodels import make_tiny_bert

TEXTS = [f"the small {'cat and the ' * (row % 7)}dog runs {row}" for row in range(37)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    model = make_tiny_bert(folder / "model", layers=2)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Work("embed", str(model), str(rows), str(folder), 1, partition_rows=8, batch_rows=4, batch_tokens=100)


@pytest.fixture(scope="module")
def expected(work: Work) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    model = AutoModel.from_pretrained(work.model).eval()
    with torch.inference_mode():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in TEXTS]
    return torch.nn.functional.normalize(torch.cat(means), dim=1).numpy()


@pytest.mark.parametrize("onednn", [False, True])
def test_loop_gives_what_transformers_gives(work: Work, expected: Any, onednn: bool) -> None:
    threads = torch.get_num_threads()
    try:
        np.testing.assert_allclose(run_loop(work, onednn), expected, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_batches_hold_every_row_once_and_keep_to_their_size() -> None:
    lengths = [3, 50, 7, 7, 120, 1]
    batches = pack(lengths, 100)
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= 100 for batch in batches)
    assert split(5, 2) == [[0, 1], [2, 3], [4]]
