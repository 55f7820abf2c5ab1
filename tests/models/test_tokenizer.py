from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from daskinfer.errors import CheckpointError, InputError, RecipeError
from daskinfer.models.preprocessing.tokenizer import make_tokenizer, mask_id, read_backend

TEXTS = [
    "",
    "The small cat sleeps.",
    "  Tabs\tand\nlines, UPPER case; naïve café — déjà vu!  ",
    "日本語のテキスト and emoji 👩‍👩‍👧 \u200b zero width",
    "[CLS] [SEP] [PAD] [MASK] <s> </s> <pad> special words",
    "a long one " * 400,
    "x" * 5000,
    "\x00 control \x07 characters",
]


def read_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.json")}


def compare(directory: Path, max_length: int) -> None:
    ours = make_tokenizer(read_files(directory), max_length)
    theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    expected = theirs(TEXTS, truncation=True, max_length=ours.max_length, padding=False)["input_ids"]
    ids = ours.encode(TEXTS)
    assert [row.tolist() for row in ids] == expected
    assert all(row.dtype == np.int32 and len(row) <= max_length for row in ids)


@pytest.mark.parametrize("architecture", ["BertModel", "RobertaModel"])
@pytest.mark.parametrize("max_length", [3, 32])
def test_ids_equal_transformers(tiny: Callable[[str], Path], architecture: str, max_length: int) -> None:
    compare(tiny(architecture), max_length)


@pytest.mark.parametrize("max_length", [16, 256])
def test_ids_equal_transformers_on_a_real_vocabulary(minilm: Path, max_length: int) -> None:
    compare(minilm, max_length)


def test_the_model_limits_the_length_and_names_the_padding(tiny: Callable[[str], Path]) -> None:
    roberta = make_tokenizer(read_files(tiny("RobertaModel")), 10_000)
    assert (roberta.max_length, roberta.pad_id) == (64, 1)
    assert len(roberta.encode(["cat " * 500])[0]) == 64
    assert make_tokenizer(read_files(tiny("BertModel")), 8).pad_id == 0


def test_left_truncation_is_honoured(tiny: Callable[[str], Path]) -> None:
    files = read_files(tiny("BertModel"))
    settings = json.loads(files["tokenizer_config.json"]) | {"truncation_side": "left"}
    left = make_tokenizer(files | {"tokenizer_config.json": json.dumps(settings).encode()}, 3)
    right = make_tokenizer(files, 3)
    assert left.encode(["cat dog"])[0][1] == right.encode(["dog"])[0][1] != right.encode(["cat dog"])[0][1]


def test_lone_surrogates_are_named(tiny: Callable[[str], Path]) -> None:
    tokenizer = make_tokenizer(read_files(tiny("BertModel")), 16)
    texts = ["fine", "broken \ud800 text"]
    with pytest.raises(InputError, match=r"text 1 of 2: .*U\+D800"):
        tokenizer.encode(texts)
    assert list(tokenizer.find_unusable(texts)) == [1]


def test_no_room_for_any_word_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match="max_length is 2"):
        make_tokenizer(read_files(tiny("BertModel")), 2)


def test_a_broken_file_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        read_backend(b'{"version": 1}')


def test_a_checkpoint_without_tokenizer_is_refused(tiny: Callable[[str], Path]) -> None:
    files = read_files(tiny("BertModel"))
    del files["tokenizer.json"]
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        make_tokenizer(files, 16)


@pytest.mark.parametrize(("architecture", "mask"), [("BertModel", "[MASK]"), ("RobertaModel", "<mask>")])
def test_the_mask_token_is_found(tiny: Callable[[str], Path], architecture: str, mask: str) -> None:
    files = read_files(tiny(architecture))
    tokenizer = make_tokenizer(files, 16)
    number = tokenizer.token_id(mask)
    settings = json.loads(files["tokenizer_config.json"])
    for named in (mask, {"content": mask}, None):
        changed = files | {"tokenizer_config.json": json.dumps(settings | {"mask_token": named}).encode()}
        assert mask_id(changed, tokenizer) == number
    settings["mask_token"] = "<blank>"
    with pytest.raises(CheckpointError, match="no mask token"):
        mask_id({"tokenizer_config.json": json.dumps(settings).encode()}, tokenizer)


def test_words_are_told_from_what_is_added(tiny: Callable[[str], Path]) -> None:
    tokenizer = make_tokenizer(read_files(tiny("BertModel")), 5)
    texts = ["cat dog", "", "[SEP] cat", "cat dog river sun stone"]
    assert [words.tolist() for words in tokenizer.find_words(texts)] == [[1, 2], [], [1, 2], [1, 2, 3]]
