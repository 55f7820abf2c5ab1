from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.encode import count_prompt, make_encoder, row_length
from daskinfer.models.tasks.fields import task_fields, task_wants
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.tasks.sentence import read_sentence
from daskinfer.spec.recipe import ModelOptions
from daskinfer.testing.taskcases import CLASSIFY_TEXTS, EMBED_TEXTS
from daskinfer.testing.tasks import ask_task, columns_of, encode_texts, fill_task, run_reference, run_task
from daskinfer.testing.tinymodels import add_sentence_modules, make_tiny

TEXTS = ["The small cat sleeps in the sun.", "", "river", "a dog and 3 stones fall, falls!", "water of the river"]


@pytest.mark.parametrize("architecture", EMBED_TEXTS)
def test_embed_equals_transformers_bit_for_bit(tiny: Callable[[str], Path], architecture: str) -> None:
    directory = tiny(architecture)
    request = ask_task(directory, "embed")
    texts = TEXTS if not architecture.startswith("GPT2") else [text for text in TEXTS if text]
    encoded = encode_texts(request, texts)
    module = fill_task(build_task(request, "float32"), directory)
    result = columns_of(request, encoded, run_task(module, encoded))["embedding"]
    assert np.array_equal(result, run_reference(directory, request, encoded))
    assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    assert task_wants(request) == {"text": "text"}


@pytest.mark.parametrize("pooling", ["cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"])
def test_every_pooling_equals_the_plain_way(tiny: Callable[[str], Path], pooling: str) -> None:
    directory = tiny("BertModel")
    request = ask_task(directory, "embed", pooling=pooling, normalize=False)
    encoded = encode_texts(request, TEXTS)
    result = run_task(fill_task(build_task(request, "float32"), directory), encoded)["embedding"]
    assert np.array_equal(result, run_reference(directory, request, encoded))
    assert not np.allclose(result, run_reference(directory, ask_task(directory, "embed"), encoded), atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_pooled_in_float32(tiny: Callable[[str], Path], tmp_path: Path, dtype: str) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"), pooling={"pooling_mode_mean_tokens": True}, dense=((32, 8, "Tanh"),)
    )
    request = ask_task(directory, "embed")
    encoded = encode_texts(request, TEXTS)
    result = run_task(fill_task(build_task(request, dtype), directory, dtype), encoded)["embedding"]
    assert result.dtype == np.float32
    assert np.array_equal(result, run_reference(directory, request, encoded, dtype))


def test_sentence_transformers_modules_are_followed(tmp_path: Path) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"),
        pooling={"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
        dense=((96, 16, "Tanh"), (16, 6, "Identity")),
        normalize=True,
    )
    request = ask_task(directory, "embed")
    encoded = encode_texts(request, TEXTS)
    module = fill_task(build_task(request, "float32"), directory)
    result = columns_of(request, encoded, run_task(module, encoded))["embedding"]
    assert result.shape == (len(TEXTS), 6)
    assert np.array_equal(result, run_reference(directory, request, encoded))
    model = transformers.BertModel.from_pretrained(directory)
    first, second = (load_file(directory / f"{number}_Dense" / "model.safetensors") for number in (2, 3))
    for row, vector in enumerate(result):
        ids = torch.as_tensor(encoded.ids[encoded.starts[row] : encoded.starts[row + 1]]).long()
        with torch.inference_mode():
            hidden = model(ids[None]).last_hidden_state[0]
            joined = torch.cat([hidden[0], hidden.max(0).values, hidden.mean(0)])
            narrow = torch.tanh(first["linear.weight"] @ joined + first["linear.bias"])
            expected = second["linear.weight"] @ narrow + second["linear.bias"]
        assert np.allclose(vector, (expected / expected.norm()).numpy(), atol=1e-5)


def test_a_real_model_is_read_as_it_was_made(minilm: Path) -> None:
    request = ask_task(minilm, "embed", max_length=512)
    assert row_length(request) <= 512
    encoded = encode_texts(request, TEXTS)
    module = fill_task(build_task(request, "float32"), minilm)
    result = columns_of(request, encoded, run_task(module, encoded))["embedding"]
    assert result.shape == (len(TEXTS), 384)
    assert np.array_equal(result, run_reference(minilm, request, encoded))


def test_the_newer_form_of_the_pooling_file(tmp_path: Path) -> None:
    directory = make_tiny(tmp_path, "BertModel")
    add_sentence_modules(directory, pooling={"pooling_mode": ["lasttoken", "mean_sqrt_len_tokens"]})
    request = ask_task(directory, "embed")
    encoded = encode_texts(request, TEXTS)
    result = run_task(fill_task(build_task(request, "float32"), directory), encoded)["embedding"]
    for half, mode in enumerate(["lasttoken", "mean_sqrt_len"]):
        alone = ask_task(directory, "embed", pooling=mode)
        assert np.array_equal(result[:, 32 * half : 32 * half + 32], run_reference(directory, alone, encoded))


def test_options_win_over_the_checkpoint(tmp_path: Path) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"), pooling={"pooling_mode_cls_token": True}, normalize=True
    )
    request = ask_task(directory, "embed", pooling="mean", normalize=False)
    encoded = encode_texts(request, TEXTS)
    result = run_task(fill_task(build_task(request, "float32"), directory), encoded)["embedding"]
    assert np.array_equal(result, run_reference(directory, request, encoded))
    assert not np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-2)
    unsaid = add_sentence_modules(directory, pooling={"pooling_mode_cls_token": True})
    assert not np.allclose(
        np.linalg.norm(run_reference(unsaid, ask_task(unsaid, "embed"), encoded), axis=1), 1, atol=1e-2
    )


@pytest.mark.parametrize("include", [True, False])
def test_prompts_are_put_before_and_left_out_of_pooling(tmp_path: Path, include: bool) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"),
        pooling={"pooling_mode_mean_tokens": True, "include_prompt": include},
        prompts={"prompts": {"query": "small dog: ", "none": ""}, "default_prompt_name": "query"},
    )
    request = ask_task(directory, "embed")
    encoded = encode_texts(request, TEXTS)
    assert np.array_equal(encoded.ids, encode_texts(ask_task(directory, "embed", prompt_name="query"), TEXTS).ids)
    assert np.array_equal(encoded.ids, encode_texts(ask_task(directory, "embed", prompt="small dog: "), TEXTS).ids)
    plain = encode_texts(ask_task(directory, "embed", prompt_name="none"), TEXTS)
    assert (encoded.lengths - plain.lengths == 3).all()
    result = run_task(fill_task(build_task(request, "float32"), directory), encoded)["embedding"]
    assert np.array_equal(result, run_reference(directory, request, encoded))
    model = transformers.BertModel.from_pretrained(directory)
    with torch.inference_mode():
        hidden = model(torch.as_tensor(encoded.ids[: encoded.starts[1]]).long()[None]).last_hidden_state[0]
    # [CLS] and the three tokens of the prompt.
    assert np.allclose(result[0], (hidden if include else hidden[4:]).mean(0).numpy(), atol=1e-5)


def test_the_checkpoint_lowers_the_length_and_the_case(tmp_path: Path) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"), pooling={}, text={"max_seq_length": 12, "do_lower_case": True}
    )
    content = json.loads((directory / "tokenizer.json").read_text())
    content["normalizer"] = None
    (directory / "tokenizer.json").write_text(json.dumps(content))
    request = ask_task(directory, "embed")
    assert row_length(request) == 12
    assert row_length(ask_task(directory, "embed", max_length=7)) == 7
    assert row_length(ask_task(directory, "score")) == 64
    upper, lower = encode_texts(request, ["THE CAT"]), encode_texts(request, ["the cat"])
    assert np.array_equal(upper.ids, lower.ids)
    assert encode_texts(request, ["cat " * 50]).lengths == [12]


@pytest.mark.parametrize("architecture", CLASSIFY_TEXTS)
def test_classify_equals_transformers(tiny: Callable[[str], Path], architecture: str) -> None:
    directory = tiny(architecture)
    request = ask_task(directory, "classify")
    encoded = encode_texts(request, [text for text in TEXTS if text])
    result = columns_of(request, encoded, run_task(fill_task(build_task(request, "float32"), directory), encoded))
    scores = torch.softmax(torch.as_tensor(run_reference(directory, request, encoded)), -1).numpy()
    assert np.array_equal(result["scores"], scores)
    assert np.array_equal(result["score"], scores.max(1))
    assert result["label"].tolist() == [f"class-{best}" for best in scores.argmax(1)]


def test_several_labels_at_once_take_the_sigmoid(tmp_path: Path) -> None:
    settings = {"problem_type": "multi_label_classification"}
    directory = make_tiny(tmp_path, "BertForSequenceClassification", settings=settings)
    request = ask_task(directory, "classify")
    encoded = encode_texts(request, TEXTS)
    result = run_task(fill_task(build_task(request, "float32"), directory), encoded)["scores"]
    expected = torch.sigmoid(torch.as_tensor(run_reference(directory, request, encoded)))
    assert np.array_equal(result, expected.numpy())


@pytest.mark.parametrize("labels", [1, 3])
def test_the_scores_of_a_regression_are_its_own_values(tmp_path: Path, labels: int) -> None:
    settings = {
        "problem_type": "regression",
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    }
    directory = make_tiny(tmp_path, "BertForSequenceClassification", labels=labels, settings=settings)
    request = ask_task(directory, "classify")
    encoded = encode_texts(request, TEXTS)
    result = columns_of(request, encoded, run_task(fill_task(build_task(request, "float32"), directory), encoded))
    assert np.array_equal(result["scores"], run_reference(directory, request, encoded))
    assert np.array_equal(result["score"], result["scores"].max(1))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.linear.Identity"}),
    ],
)
def test_the_activation_of_a_cross_encoder_is_followed_or_refused(
    tmp_path: Path, file: str, settings: dict[str, Any]
) -> None:
    directory = make_tiny(tmp_path, "BertForSequenceClassification", labels=1)
    path = directory / file
    plain = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(plain | settings))
    with pytest.raises(CheckpointError, match=f"{file}: .*Identity of its logits, and not their Sigmoid"):
        build_task(ask_task(directory, "classify"), "float32")
    path.write_text(json.dumps(settings).replace("linear.Identity", "activation.Sigmoid"))
    path.write_text(json.dumps(plain | json.loads(path.read_text())))
    build_task(ask_task(directory, "classify"), "float32")


def test_rows_that_cannot_be_computed_are_refused(tiny: Callable[[str], Path]) -> None:
    request = ask_task(tiny("GPT2LMHeadModel"), "score")
    encoded, refused = make_encoder(request, 16).encode({"text": ["", "cat dog", "broken \udcff", "  "]})
    assert refused == {
        0: "the text gives no tokens",
        2: "not valid Unicode: lone surrogate U+DCFF",
        3: "the text gives no tokens",
    }
    assert encoded.lengths.tolist() == [2]
    small = json.loads(request.files["config.json"]) | {"vocab_size": 90}
    files = {**request.files, "config.json": json.dumps(small).encode()}
    narrow = TaskRequest(request.task, request.options, request.architecture, files)
    _, refused = make_encoder(narrow, 16).encode({"text": ["cat falls"]})
    assert refused == {0: "token id 96 is unknown to the model, whose vocabulary has 90"}


@pytest.mark.parametrize(
    ("architecture", "task", "message"),
    [
        ("BertModel", "classify", "no trained sequence classifier"),
        ("BertModel", "score", "predicts no tokens"),
        ("T5ForConditionalGeneration", "score", "encoder-decoder"),
        ("BartForSequenceClassification", "classify", "encoder-decoder classifiers"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_refused(
    tiny: Callable[[str], Path], architecture: str, task: str, message: str
) -> None:
    request = ask_task(tiny(architecture), task)
    with pytest.raises(CheckpointError, match=message):
        build_task(request, "float32")
    with pytest.raises(CheckpointError, match=message):
        task_fields(request, 16)


def test_a_decoder_classifier_without_padding_id_is_refused(tmp_path: Path) -> None:
    directory = make_tiny(tmp_path, "LlamaForSequenceClassification", settings={"pad_token_id": None})
    with pytest.raises(CheckpointError, match="pad_token_id"):
        build_task(ask_task(directory, "classify"), "float32")


def test_sound_is_no_text(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(d_model=12, encoder_layers=1, decoder_layers=1).to_dict()
    files = {"config.json": json.dumps(config).encode()}
    with pytest.raises(CheckpointError, match="WhisperModel takes sound"):
        build_task(TaskRequest("embed", ModelOptions(), "WhisperModel", files), "float32")


def test_what_sentence_transformers_can_do_and_we_cannot_is_refused(tmp_path: Path) -> None:
    directory = add_sentence_modules(make_tiny(tmp_path, "BertModel"), pooling={}, dense=((32, 8, "Tanh"),))
    request = ask_task(directory, "embed")

    def refuse(path: str, content: Any, error: type[Exception], message: str, **options: Any) -> None:
        files = {**request.files, path: json.dumps(content).encode()}
        changed = TaskRequest("embed", ModelOptions(**options), request.architecture, files)
        with pytest.raises(error, match=message):
            task_fields(changed, 16)

    dense = json.loads(request.files["2_Dense/config.json"])
    refuse("modules.json", [{"path": "", "type": "custom_st.Transformer"}], CheckpointError, "custom_st.Transformer")
    kind = "sentence_transformers.models"
    whole: list[dict[str, str]] = [
        {"path": "", "type": f"{kind}.Transformer"},
        {"path": "9_P", "type": f"{kind}.Pooling"},
    ]
    refuse("modules.json", whole, CheckpointError, "9_P")
    refuse("modules.json", whole[1:], CheckpointError, "Pooling are not a Transformer, a Pooling")
    refuse("modules.json", [*whole, whole[1]], CheckpointError, "Transformer, Pooling, Pooling are not")
    refuse("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, CheckpointError, "has no mode")
    refuse(
        "sentence_bert_config.json", {"model_args": {"num_labels": 3}}, CheckpointError, "model_args.num_labels is 3"
    )
    refuse("sentence_bert_config.json", {"tokenizer_args": {"do_lower_case": True}}, CheckpointError, "tokenizer_args")
    refuse("sentence_bert_config.json", {"unknown": 1}, CheckpointError, "unknown is 1")
    for changed in (
        {"transformer_task": "fill-mask"},
        {"module_output_name": "sentence_embedding"},
        {"modality_config": {"text": {"method": "get_text_features", "method_output_name": "pooler_output"}}},
        {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
        {"processing_kwargs": {"text": {"max_length": 4}}},
        {"model_kwargs": {"num_labels": 3}},
        {"query_length": 8},
    ):
        refuse("sentence_bert_config.json", changed, CheckpointError, r"^sentence_bert_config.json: .* not supported")
    refuse("config_sentence_transformers.json", {"truncate_dim": 8}, CheckpointError, "truncate_dim is 8")
    refuse("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, CheckpointError, "SparseEncoder")
    refuse("1_Pooling/config.json", {"pooling_mode": "attention"}, CheckpointError, "'attention'")
    refuse("2_Dense/config.json", dense | {"activation_function": "os.system"}, CheckpointError, "os.system")
    refuse("2_Dense/config.json", dense | {"use_residual": True}, CheckpointError, "plain layer")
    refuse("2_Dense/config.json", dense | {"out_features": "8"}, CheckpointError, "out_features 8")
    refuse("2_Dense/config.json", dense | {"in_features": 64}, RecipeError, "64 numbers, but pooling makes 32")
    named = {"prompts": {"query": "q: ", "passage": "p: "}}
    refuse("config_sentence_transformers.json", named, RecipeError, "query, passage", prompt_name="document")
    refuse("config_sentence_transformers.json", {}, RecipeError, "has none", prompt_name="query")
    refuse("config_sentence_transformers.json", named, RecipeError, "both", prompt_name="query", prompt="x")


def test_what_a_pooling_leaves_unsaid_is_as_sentence_transformers_has_it(tmp_path: Path) -> None:
    directory = add_sentence_modules(make_tiny(tmp_path, "BertModel"), pooling={"pooling_mode_cls_token": True})
    assert read_sentence(ask_task(directory, "embed")).pooling == ("cls", "mean")
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    harmless = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {"text": forward, "message": forward | {"format": "flat"}},
        "unpad_inputs": False,
        "processing_kwargs": {},
        "query_length": None,
        "model_kwargs": {"dtype": "auto"},
        "model_args": {"torch_dtype": "float16"},
        "tokenizer_args": {"padding_side": "left"},
        "max_seq_length": None,
    }
    add_sentence_modules(directory, pooling={}, text=harmless)
    assert read_sentence(ask_task(directory, "embed")).pooling == ("mean",)
    (directory / "sentence_bert_config.json").rename(directory / "sentence_roberta_config.json")
    (directory / "sentence_roberta_config.json").write_text(json.dumps({"max_seq_length": 9}))
    assert row_length(ask_task(directory, "embed")) == 9


def test_space_around_a_text_is_taken_off_where_sentence_transformers_would(tmp_path: Path) -> None:
    directory = make_tiny(tmp_path, "BertModel")
    content = json.loads((directory / "tokenizer.json").read_text())
    content["normalizer"], content["pre_tokenizer"] = None, None
    (directory / "tokenizer.json").write_text(json.dumps(content))
    spaced = encode_texts(ask_task(directory, "embed"), ["  cat "])
    add_sentence_modules(directory, pooling={"include_prompt": False}, prompts={"prompts": {"q": "cat "}})
    plain, told = (encode_texts(ask_task(directory, "embed"), [text]) for text in ("cat", "  cat "))
    assert told.ids.tolist() == plain.ids.tolist() != spaced.ids.tolist()
    assert count_prompt(ask_task(directory, "embed", prompt_name="q")) == 2


def test_the_first_token_is_the_texts_own_even_where_a_prompt_is_left_out(tmp_path: Path) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"),
        pooling={"pooling_mode": "cls", "include_prompt": False},
        prompts={"prompts": {"q": "small dog: "}},
    )
    found = {}
    for include in (True, False):
        (directory / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls", "include_prompt": include}))
        request = ask_task(directory, "embed", prompt_name="q")
        found[include] = run_task(fill_task(build_task(request, "float32"), directory), encode_texts(request, TEXTS))
    assert np.array_equal(found[True]["embedding"], found[False]["embedding"])


def test_prompts_are_for_embeddings(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match="takes no prompt"):
        task_fields(ask_task(tiny("GPT2LMHeadModel"), "score", prompt="x"), 16)
