from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from daskinfer.errors import CheckpointError
from daskinfer.models.folder import LocalFolder
from daskinfer.models.preprocessing.tokenizer import SETTINGS, make_tokenizer, read_settings
from daskinfer.models.preprocessing.tokenizer_conversion import PROBES, convert_tokenizer
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import explain_length, row_length
from daskinfer.spec.recipe.schema import ModelOptions

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LETTERS = string.ascii_letters + string.digits + string.punctuation
BERT_NAMES = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def word_piece(lower: bool = False) -> Tokenizer:
    words = [*BERT, *LETTERS, *(f"##{letter}" for letter in LETTERS), "\u00e9", "\u4e2d", "##\u4e2d", "hello", "the"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_pairs(prefix: bool = False) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*ROBERTA, *alphabet, "th", "the", "\u0120t", "\u0120th", "\u0120the"]
    merges = [("t", "h"), ("th", "e"), ("\u0120", "t"), ("\u0120t", "h"), ("\u0120th", "e")]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    words = (
        [(word, 0.0) for word in ROBERTA]
        + [(letter, -4.0) for letter in LETTERS]
        + [("\u2581", -2.0), ("\u2581the", -3.0)]
    )
    tokenizer = Tokenizer(models.Unigram(words, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, model_type: str = "bert", **settings: Any) -> Path:
    """Write a tokenizer's files as a checkpoint holds them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"model_type": model_type, "vocab_size": 1000, "hidden_size": 192, "max_position_embeddings": 10_000}
        )
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def convert(folder: Path) -> dict[str, bytes]:
    names = sorted(path.name for path in folder.iterdir())
    files = {name: (folder / name).read_bytes() for name in names}
    return files | convert_tokenizer(LocalFolder(folder), names, json.loads(files["config.json"]))


def compare(folder: Path, files: Mapping[str, bytes], max_length: int = 1000) -> None:
    """Check that the stored tokenizer gives what plain transformers gives."""
    loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    theirs = loaded(list(PROBES), truncation=True, max_length=max_length)
    for row, ids, types in zip(
        make_tokenizer(files, max_length).encode_rows(PROBES),
        theirs["input_ids"],
        theirs.get("token_type_ids", [None] * len(PROBES)),
        strict=True,
    ):
        assert row.ids.tolist() == ids
        assert types is None or types == (row.types.tolist() if row.types is not None else [0] * len(ids))


CASES: dict[str, tuple[Tokenizer, str, dict[str, Any]]] = {
    "word-piece": (word_piece(), "bert", BERT_NAMES),
    "lower-case": (word_piece(), "bert", BERT_NAMES | {"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
    "upper-case": (word_piece(True), "bert", BERT_NAMES | {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "accents": (
        word_piece(),
        "bert",
        BERT_NAMES | {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False},
    ),
    "chinese": (
        word_piece(),
        "bert",
        BERT_NAMES | {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False},
    ),
    "byte-pairs": (byte_pairs(), "gpt_neox", ROBERTA_NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "prefix-space": (
        byte_pairs(),
        "roberta",
        ROBERTA_NAMES | {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True},
    ),
    "no-prefix-space": (
        byte_pairs(True),
        "roberta",
        ROBERTA_NAMES | {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False},
    ),
    "unigram": (unigram(), "t5", ROBERTA_NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "unigram-rebuilt": (unigram(), "xlm-roberta", ROBERTA_NAMES | {"tokenizer_class": "XLMRobertaTokenizer"}),
    "split-special": (
        word_piece(),
        "bert",
        BERT_NAMES | {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True},
    ),
    "left": (
        word_piece(),
        "bert",
        BERT_NAMES | {"tokenizer_class": "PreTrainedTokenizerFast", "truncation_side": "left"},
    ),
    "more-tokens": (
        word_piece(),
        "bert",
        BERT_NAMES | {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["cat", "vu,"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    tokenizer, model_type, settings = CASES[case]
    folder = write(tmp_path / "model", tokenizer, model_type, **settings)
    files = convert(folder)
    assert not read_settings(files).refused
    compare(folder, files)
    compare(folder, files, 7)


@pytest.mark.parametrize(
    "case", ["lower-case", "upper-case", "accents", "chinese", "prefix-space", "no-prefix-space", "more-tokens"]
)
def test_what_another_file_says_changes_tokenizer_json(case: str, tmp_path: Path) -> None:
    tokenizer, model_type, settings = CASES[case]
    folder = write(tmp_path / "model", tokenizer, model_type, **settings)
    own = (folder / "tokenizer.json").read_bytes()
    assert convert(folder)["tokenizer.json"] != own
    with pytest.raises(AssertionError):
        compare(folder, {"config.json": (folder / "config.json").read_bytes(), "tokenizer.json": own})


def test_a_tokenizer_json_that_says_all_is_kept_as_it_is(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.add_special_tokens(list(BERT))
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128, direction="left")
    folder = write(tmp_path / "model", tokenizer, **BERT_NAMES, tokenizer_class="PreTrainedTokenizerFast")
    files = convert(folder)
    assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    # transformers takes the side from there, and the length from the caller.
    assert read_settings(files).truncation_side == "left"
    assert len(make_tokenizer(files, 300).encode(["the " * 500])[0]) == 300
    compare(folder, files, 9)


def test_tokens_of_added_tokens_json_are_added(tmp_path: Path) -> None:
    tokenizer = word_piece()
    folder = write(tmp_path / "model", tokenizer, **BERT_NAMES, tokenizer_class="PreTrainedTokenizerFast")
    (folder / "added_tokens.json").write_text(json.dumps({"sleeps": tokenizer.get_vocab_size()}))
    (folder / "special_tokens_map.json").write_text(json.dumps(BERT_NAMES | {"additional_special_tokens": ["Case"]}))
    files = convert(folder)
    compare(folder, files)
    plain = write(tmp_path / "plain", tokenizer, **BERT_NAMES, tokenizer_class="PreTrainedTokenizerFast")
    assert (
        make_tokenizer(files, 99).encode(["cat sleeps"])[0].tolist()
        != make_tokenizer(convert(plain), 99).encode(["cat sleeps"])[0].tolist()
    )


def test_token_types_travel(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    folder = write(
        tmp_path / "model",
        tokenizer,
        "roberta",
        **BERT_NAMES,
        tokenizer_class="PreTrainedTokenizerFast",
        model_input_names=names,
    )
    files = convert(folder)
    compare(folder, files)
    assert read_settings(files).token_types == 3
    types = make_tokenizer(files, 99).encode_rows(["a b"])[0].types
    assert types is not None
    assert types.tolist() == [0, 0, 0, 2]
    # A tokenizer that does not return them has none.
    folder = write(
        folder,
        tokenizer,
        "roberta",
        **BERT_NAMES,
        tokenizer_class="PreTrainedTokenizerFast",
        model_input_names=names[::2],
    )
    assert make_tokenizer(convert(folder), 99).encode_rows(["a b"])[0].types is None


def test_what_is_longer_is_told_from_what_just_fits(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", word_piece(), **BERT_NAMES, tokenizer_class="PreTrainedTokenizerFast")
    rows = make_tokenizer(convert(folder), 5).encode_rows(["a b", "a b c", "a b c d", ""])
    assert [row.is_truncated for row in rows] == [False, False, True, False]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tokenizer_class": "CanineTokenizer"}, "CanineTokenizer is written in Python"),
        ({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}, "contains custom code"),
        ({"model_max_length": 0}, "model_max_length is 0"),
        ({"tokenizer_class": "LayoutLMv3Tokenizer"}, "LayoutLMv3Tokenizer"),
    ],
)
def test_what_cannot_be_repeated_is_refused_where_texts_are_encoded(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    model_type = "vit" if "auto_map" in settings else "bert"
    files = convert(write(tmp_path / "model", word_piece(), model_type, **BERT_NAMES | settings))
    with pytest.raises(CheckpointError, match=told) as refused:
        make_tokenizer(files, 99)
    assert "tokenizer_config.json" in refused.value.message


def test_a_vocabulary_that_lacks_its_own_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    files = convert(write(tmp_path / "model", tokenizer, tokenizer_class="PreTrainedTokenizerFast"))
    with pytest.raises(CheckpointError, match=r"cannot encode a text: .*UNK"):
        make_tokenizer(files, 99)


def test_a_class_that_does_more_than_its_file_says_is_refused(tmp_path: Path) -> None:
    # It puts a language before every text when it is called, not in tokenizer.json.
    factory: Any = transformers.SeamlessM4TTokenizer
    factory().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "seamless_m4t"}))
    with pytest.raises(CheckpointError, match="encodes '' in another way"):
        make_tokenizer(convert(tmp_path), 99)


def test_a_snapshot_without_settings_is_read_by_its_files() -> None:
    config = json.dumps({"truncation_side": "left", "model_max_length": 77, "mask_token": {"content": "<m>"}}).encode()
    settings = read_settings({"tokenizer_config.json": config})
    assert (settings.truncation_side, settings.model_max_length, settings.mask_token) == ("left", 77, "<m>")
    assert read_settings({}).model_max_length is None
    with pytest.raises(CheckpointError, match=SETTINGS):
        read_settings({SETTINGS: b"[]"})


def test_the_lowest_limit_is_kept_and_named(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**BERT_NAMES, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40}
    files = convert(write(tmp_path / "model", word_piece(), **settings))
    sentence = {"sentence_bert_config.json": b'{"max_seq_length": 70}', "modules.json": b"[]"}

    def ask(max_length: int, task: str = "embed", more: Mapping[str, bytes] = {}) -> tuple[int, str]:
        request = TaskRequest(task, ModelOptions(max_length=max_length), "BertModel", {**files, **more})
        return row_length(request), explain_length(request)

    assert ask(30) == (30, "")
    assert ask(99) == (40, "texts have at most 40 tokens by model_max_length of tokenizer_config.json, not 99")
    assert ask(99, more=sentence) == (
        70,
        "texts have at most 70 tokens by max_seq_length of sentence_bert_config.json, not 99",
    )
    assert ask(99, "classify", sentence)[0] == 40
    files["config.json"] = b'{"model_type": "bert", "hidden_size": 192, "max_position_embeddings": 20}'
    assert ask(99) == (20, "texts have at most 20 tokens by the positions of config.json, not 99")
