"""Every task on texts: staged through the workers, compared with transformers' own model bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from daskinfer.models.tasks.encode import make_encoder, row_length
from daskinfer.planning.microbatches import pack_microbatches
from daskinfer.spec.recipe.schema import ModelOptions, Recipe
from daskinfer.testing.fixtures.tasks import ask_task
from daskinfer.testing.models.reference import run_unsplit
from daskinfer.testing.models.tinymodels import add_sentence_modules, make_tiny
from tests.e2e.conftest import WORDS, run
from tests.e2e.outputs import read_columns, read_microbatches, read_quarantine

pytestmark = pytest.mark.late

Microbatches = list[tuple[tuple[int, int], ...]]

ROWS = 50
PARTITION = 20
TOKENS = 256
# A text without a single token for tokenizers that add none, and one that is not Unicode.
EMPTY, BROKEN = 7, 33


@dataclass(frozen=True)
class Shop:
    """A folder with texts; its registry is shared by all tests."""

    folder: Path
    texts: tuple[str, ...]

    def model(self, architecture: str) -> Path:
        """Return a tiny checkpoint, made once."""
        directory = self.folder / "models" / architecture
        return directory if directory.exists() else make_tiny(directory, architecture)

    def recipe(self, directory: Path, task: str, output: str, stages: int, **options: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "daskinfer": 1,
                "name": output.partition(".")[0],
                "workspace": str(self.folder / "work"),
                "model": {"checkpoint": str(directory), "task": task, "kernels": "torch", "options": options},
                "input": {"url": str(self.folder / "in.jsonl"), "partition_rows": PARTITION},
                "output": {"url": str(self.folder / output), "keep": ["id"]},
                "pipeline": {"stages": stages, "microbatch_tokens": TOKENS},
                "errors": {"max_rows": 2},
            }
        )

    def expect(self, directory: Path, task: str, jobs: Sequence[Microbatches], **options: Any) -> list[Any]:
        """Return what plain code gives for every row at the microbatches of the jobs; None if it is refused."""
        request = ask_task(directory, task, **options)
        encoder = make_encoder(request, row_length(request))
        readable = [number for number in range(ROWS) if number not in (EMPTY, BROKEN)]
        batches, places, packed = [], [], []
        for first in range(0, ROWS, PARTITION):
            rows = [number for number in readable if first <= number < first + PARTITION]
            encoded, refused = encoder.encode({"text": [self.texts[number] for number in rows]})
            kept = [number for place, number in enumerate(rows) if place not in refused]
            items = kept if encoded.variants is None else [kept[row] for row in encoded.variants.rows]
            microbatches = pack_microbatches(encoded.lengths, TOKENS)
            packed.append(tuple((len(each.rows), each.length) for each in microbatches))
            batches += [encoded.batch(each.rows, each.length) for each in microbatches]
            places += [[items[item] for item in each.rows] for each in microbatches]
        assert [*jobs] == [packed for _ in jobs]
        results = run_unsplit(directory, batches, task=task, options=ModelOptions(**options))
        found: list[Any] = [None] * ROWS
        for numbers, values, batch in zip(places, results, batches, strict=True):
            for number, value, place in zip(numbers, values, batch.get("position", numbers), strict=True):
                if "position" not in batch:
                    found[number] = value
                else:
                    found[number] = {**(found[number] or {}), int(place): value}
        return found


def compute(
    shop: Shop, scheduler: str, directory: Path, task: str, output: str, stages: int, **options: Any
) -> tuple[Microbatches, dict[str, NDArray[Any]]]:
    """Run a task on the texts; return its microbatches and the output's columns, without the rows that were refused."""
    recipe = shop.recipe(directory, task, output, stages, **options)
    report = run(recipe, scheduler, workers=stages)
    assert len(report.stages) == stages
    assert report.rows_in == ROWS == report.rows_out + report.rows_quarantined
    refused = read_quarantine(shop.folder / output)
    assert len(refused) == report.rows_quarantined
    assert "lone surrogate" in refused[BROKEN]
    columns = read_columns(shop.folder / output)
    assert columns["id"].tolist() == [f"row-{number}" for number in range(ROWS) if number not in refused]
    return read_microbatches(recipe, report), columns


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    source = random.Random(0)
    texts = [" ".join(source.choices(WORDS, k=source.randint(1, 12))) for _ in range(ROWS)]
    texts[EMPTY], texts[BROKEN] = "", "\ud800"
    rows = [json.dumps({"id": f"row-{number}", "text": text}) for number, text in enumerate(texts)]
    (folder / "in.jsonl").write_text("\n".join(rows))
    return Shop(folder, tuple(texts))


def test_score_by_a_causal_model(shop: Shop, scheduler: str) -> None:
    directory = shop.model("GPT2LMHeadModel")
    runs = [
        compute(shop, scheduler, directory, "score", f"causal-{stages}.zarr", stages, per_token=True)
        for stages in (1, 3)
    ]
    jobs = [job for job, _ in runs]
    sums = [value for value in shop.expect(directory, "score", jobs) if value is not None]
    rows = [value for value in shop.expect(directory, "score", jobs, per_token=True) if value is not None]
    for _, columns in runs:
        assert columns["logprob"].tolist() == sums
        assert columns["num_tokens"].tolist() == [(~np.isnan(row)).sum() for row in rows]
        with np.errstate(invalid="ignore"):
            mean = columns["logprob"].astype(float) / columns["num_tokens"]
        assert np.allclose(columns["perplexity"], np.exp(-mean), rtol=1e-5, equal_nan=True)
        for number, row in enumerate(rows):
            written, ids = columns["token_logprobs"][number], columns["token_ids"][number]
            length = int(columns["num_tokens"][number]) + 1
            assert np.array_equal(written[: len(row)], row, equal_nan=True)
            assert np.isnan(written[length:]).all()
            assert (ids >= 0).sum() == length
    assert read_quarantine(shop.folder / "causal-3.zarr")[EMPTY] == "column 'text': is empty"


def test_score_by_a_masked_model(shop: Shop, scheduler: str) -> None:
    directory = shop.model("BertForMaskedLM")
    job, columns = compute(shop, scheduler, directory, "score", "masked.parquet", 2, per_token=True)
    expected = shop.expect(directory, "score", [job], per_token=True)
    for number, row in enumerate(columns["row"]):
        tokens = expected[row] or {}
        written = columns["token_logprobs"][number]
        assert np.flatnonzero(~np.isnan(written)).tolist() == sorted(tokens)
        assert [written[place] for place in sorted(tokens)] == [tokens[place] for place in sorted(tokens)]
        assert columns["num_tokens"][number] == len(tokens)
        assert columns["logprob"][number] == pytest.approx(sum(map(float, tokens.values())), abs=1e-4)
    assert read_quarantine(shop.folder / "masked.parquet").keys() == {EMPTY, BROKEN}


def test_classify_texts(shop: Shop, scheduler: str) -> None:
    directory = shop.model("DistilBertForSequenceClassification")
    job, columns = compute(shop, scheduler, directory, "classify", "classes.parquet", 2)
    logits = torch.tensor(np.array([row for row in shop.expect(directory, "classify", [job]) if row is not None]))
    scores = torch.softmax(logits, -1).numpy()
    assert np.array_equal(columns["scores"], scores)
    assert columns["label"].tolist() == [f"class-{best}" for best in scores.argmax(1)]
    assert np.array_equal(columns["score"], scores.max(1))


@pytest.mark.parametrize(
    ("architecture", "options", "width"),
    [
        ("T5ForConditionalGeneration", {}, 32),  # its encoder alone
        ("LlamaForCausalLM", {"pooling": "lasttoken", "normalize": False}, 32),
        ("sentence-transformers", {}, 24),
        ("sentence-transformers", {"prompt_name": "document"}, 24),
    ],
)
def test_embed_texts(shop: Shop, scheduler: str, architecture: str, options: dict[str, Any], width: int) -> None:
    directory = make_sentence(shop) if architecture == "sentence-transformers" else shop.model(architecture)
    name = "-".join(["embed", architecture, *map(str, options.values())])
    runs = [
        compute(shop, scheduler, directory, "embed", f"{name}-{stages}.zarr", stages, **options) for stages in (1, 3)
    ]
    expected = [row for row in shop.expect(directory, "embed", [job for job, _ in runs], **options) if row is not None]
    for _, columns in runs:
        assert columns["embedding"].shape == (ROWS - 2, width)
        assert np.array_equal(columns["embedding"], np.array(expected))


def make_sentence(shop: Shop) -> Path:
    """Return a checkpoint with every file of sentence-transformers', made once."""
    directory = shop.folder / "models/sentence"
    if directory.exists():
        return directory
    return add_sentence_modules(
        make_tiny(directory, "BertModel", seed=3),
        pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "include_prompt": False},
        dense=((64, 24, "Tanh"),),
        normalize=True,
        text={"max_seq_length": 20, "do_lower_case": True},
        prompts={"prompts": {"query": "the cat: ", "document": "A dog, "}, "default_prompt_name": "query"},
    )
