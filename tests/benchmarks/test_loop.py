"""The hand-written rival computes what transformers computes, however its batches fall."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from daskinfer.testing.models.tinymodels import make_tiny_bert

ROOT = Path(__file__).resolve().parents[2]
Result = tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], dict[str, float]]
TEXTS = [f"the small {'cat and the ' * (row % 7)}dog runs {row}" for row in range(37)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_tiny_bert(folder / "model", layers=2)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def run_loop(corpus: Path, part: str) -> Result:
    output = corpus / f"{part.replace('/', '-')}.npy"
    paths = [ROOT / "benchmarks/loop.py", corpus / "model", corpus / "rows.jsonl", output]
    command = [sys.executable, *map(str, paths), "--tokens", "100", "--part", part]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return np.load(output), json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole(corpus: Path) -> Result:
    return run_loop(corpus, "0/1")


def test_whole_corpus_equals_one_text_at_a_time(corpus: Path, whole: Result) -> None:
    vectors, stamps = whole
    tokenizer = AutoTokenizer.from_pretrained(corpus / "model")
    model = AutoModel.from_pretrained(corpus / "model").eval()
    with torch.inference_mode():
        wanted = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in TEXTS]
    expected = torch.nn.functional.normalize(torch.cat(wanted), dim=1).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert stamps["rows"] == len(TEXTS)
    assert stamps["started"] < stamps["ready"] < stamps["done"]
    assert stamps["tokens"] <= stamps["padded_tokens"]


def test_parts_are_every_other_row(corpus: Path, whole: Result) -> None:
    np.testing.assert_allclose(run_loop(corpus, "1/2")[0], whole[0][1::2], atol=1e-5)
