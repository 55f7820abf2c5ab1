from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from daskinfer.models.tasks.build import build_task
from daskinfer.testing.fixtures.tasks import ask_task, columns_of, encode_texts, fill_task, run_reference, run_task
from daskinfer.testing.models.taskcases import SCORE_CAUSAL, SCORE_MASKED

TEXTS = ["The small cat sleeps in the sun.", "", "river", "a dog and 3 stones fall, falls!", "water of the river"]


@pytest.mark.parametrize("architecture", SCORE_CAUSAL)
def test_causal_scores_equal_transformers(tiny: Callable[[str], Path], architecture: str) -> None:
    directory = tiny(architecture)
    request = ask_task(directory, "score", per_token=True, max_length=64)
    texts = [text for text in TEXTS if text]
    encoded = encode_texts(request, texts)
    columns = columns_of(request, encoded, run_task(fill_task(build_task(request, "float32"), directory), encoded))
    whole = ask_task(directory, "score")
    assert np.array_equal(columns["logprob"], run_reference(directory, whole, encoded))
    model = getattr(transformers, architecture).from_pretrained(directory)
    for row in range(len(texts)):
        ids = encoded.ids[encoded.starts[row] : encoded.starts[row + 1]]
        assert columns["token_ids"][row].tolist() == ids.tolist() + [-1] * (64 - len(ids))
        assert np.isnan(columns["token_logprobs"][row]).tolist() == [not 0 < n < len(ids) for n in range(64)]
        assert columns["num_tokens"][row] == len(ids) - 1
        if len(ids) == 1:
            assert columns["logprob"][row] == 0
            assert np.isnan(columns["perplexity"][row])
            continue
        tensor = torch.as_tensor(ids).long()[None]
        with torch.inference_mode():
            loss = float(model(tensor, labels=tensor).loss)
        assert columns["perplexity"][row] == pytest.approx(np.exp(loss), rel=1e-5)
        assert np.nansum(columns["token_logprobs"][row]) == pytest.approx(columns["logprob"][row], rel=1e-5)


def test_a_text_of_one_token_predicts_nothing(tiny: Callable[[str], Path]) -> None:
    directory = tiny("GPT2LMHeadModel")
    request = ask_task(directory, "score", per_token=True)
    encoded = encode_texts(request, ["cat", "dog"])
    columns = columns_of(request, encoded, run_task(fill_task(build_task(request, "float32"), directory), encoded))
    assert columns["logprob"].tolist() == [0, 0]
    assert columns["num_tokens"].tolist() == [0, 0]
    assert np.isnan(columns["perplexity"]).all()


@pytest.mark.parametrize("architecture", SCORE_MASKED)
def test_masked_scores_equal_a_plain_loop(tiny: Callable[[str], Path], architecture: str) -> None:
    directory = tiny(architecture)
    request = ask_task(directory, "score", per_token=True)
    encoded = encode_texts(request, TEXTS)
    arrays = run_task(fill_task(build_task(request, "float32"), directory), encoded)
    assert np.array_equal(arrays["token_logprob"], run_reference(directory, request, encoded))
    columns = columns_of(request, encoded, arrays)
    model = getattr(transformers, architecture).from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for row, text in enumerate(TEXTS):
        ids = torch.as_tensor(tokenizer(text)["input_ids"])
        expected = {}
        for place in range(1, len(ids) - 1):
            masked = ids.clone()
            masked[place] = tokenizer.mask_token_id
            with torch.inference_mode():
                logits = model(masked[None]).logits[0, place]
            expected[place] = float(logits.log_softmax(-1)[ids[place]])
        values = columns["token_logprobs"][row]
        assert np.flatnonzero(~np.isnan(values)).tolist() == list(expected)
        assert np.allclose(values[list(expected)], list(expected.values()), atol=1e-5)
        assert columns["num_tokens"][row] == len(expected)
        assert columns["logprob"][row] == pytest.approx(sum(expected.values()), abs=1e-4)
        assert columns["token_ids"][row, : len(ids)].tolist() == ids.tolist()
    empty = TEXTS.index("")
    assert columns["logprob"][empty] == 0
    assert np.isnan(columns["perplexity"][empty])


def test_masked_rows_without_any_word_have_no_items(tiny: Callable[[str], Path]) -> None:
    request = ask_task(tiny("BertForMaskedLM"), "score")
    encoded = encode_texts(request, ["", ""])
    assert len(encoded.lengths) == 0
    columns = columns_of(request, encoded, {"token_logprob": np.empty(0, np.float32)})
    assert columns["logprob"].tolist() == [0, 0]
