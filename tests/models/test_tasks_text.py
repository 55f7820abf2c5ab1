from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.models.architecture import stored_prefix
from daskinfer.models.encoding import EncodedRows
from daskinfer.models.reference import run_unsplit
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.encode import make_encoder, row_length
from daskinfer.models.tasks.fields import task_fields, task_wants
from daskinfer.models.tasks.finish import finish_rows
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.spec.recipe import ModelOptions
from daskinfer.testing.tinymodels import add_sentence_modules, make_tiny

TEXTS = ["The small cat sleeps in the sun.", "", "river", "a dog and 3 stones fall, falls!", "water of the river"]
EMBEDDERS = [
    "BertModel",
    "BertForMaskedLM",
    "RobertaModel",
    "DistilBertModel",
    "MPNetModel",
    "ModernBertModel",
    "DebertaV2Model",
    "T5EncoderModel",
    "T5ForConditionalGeneration",
    "BartModel",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
]
CAUSAL = ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM", "OPTForCausalLM"]
MASKED = ["BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM", "MPNetForMaskedLM", "ModernBertForMaskedLM"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"root": tmp_path_factory.mktemp("text")}


@pytest.fixture
def tiny_text(checkpoints: dict[str, Path]) -> Any:
    def make(architecture: str) -> Path:
        if architecture not in checkpoints:
            checkpoints[architecture] = make_tiny(checkpoints["root"] / architecture, architecture)
        return checkpoints[architecture]

    return make


def ask(directory: Path, task: str, **options: Any) -> TaskRequest:
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.json")}
    architecture = json.loads(files["config.json"])["architectures"][0]
    return TaskRequest(task, ModelOptions(**options), architecture, files)


def fill(module: TaskModule, directory: Path, dtype: str = "float32") -> TaskModule:
    """Give a module the weights of the checkpoint's own class, by the names that a snapshot has for them."""
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    whole = getattr(transformers, architecture).from_pretrained(directory, dtype=getattr(torch, dtype))
    stored = {name.removeprefix(stored_prefix(whole)): value.clone() for name, value in whole.state_dict().items()}
    for path in directory.glob("*_Dense/model.safetensors"):
        weights = load_file(path).items()
        stored |= {f"{path.parent.name}.{name}": value.to(getattr(torch, dtype)) for name, value in weights}
    assert all(parameter.is_meta for parameter in module.parameters())
    wanted = {name: stored[module.stored_name(name)] for name in module.state_dict()}
    module.load_state_dict(wanted, assign=True)
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    return module


def batches(encoded: EncodedRows, size: int = 3) -> list[tuple[list[int], dict[str, Any]]]:
    order = np.argsort(-encoded.lengths, kind="stable").tolist()
    chunks = [order[begin : begin + size] for begin in range(0, len(order), size)]
    return [(chunk, encoded.batch(chunk, int(encoded.lengths[chunk].max()))) for chunk in chunks]


def run(module: TaskModule, encoded: EncodedRows) -> dict[str, Any]:
    torch.set_num_threads(1)
    parts: dict[str, list[Any]] = {}
    order: list[int] = []
    with torch.inference_mode():
        for chunk, inputs in batches(encoded):
            assert set(inputs) == {array.name for array in module.inputs}
            order += chunk
            for name, values in module(**{key: torch.as_tensor(value) for key, value in inputs.items()}).items():
                parts.setdefault(name, []).append(values.numpy())
    back = np.argsort(order)
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def encode(request: TaskRequest, texts: Sequence[str] = TEXTS) -> EncodedRows:
    encoded, refused = make_encoder(request, row_length(request)).encode({"text": texts})
    assert not refused
    return encoded


def reference(directory: Path, request: TaskRequest, encoded: EncodedRows, dtype: str = "float32") -> Any:
    parts = batches(encoded)
    results = run_unsplit(
        directory, [inputs for _, inputs in parts], task=request.task, options=request.options, dtype=dtype
    )
    return np.concatenate(results)[np.argsort([item for chunk, _ in parts for item in chunk])]


def columns_of(request: TaskRequest, encoded: EncodedRows, arrays: Mapping[str, Any]) -> dict[str, Any]:
    columns = finish_rows(request, encoded, arrays)
    fields = task_fields(request, row_length(request))
    assert list(columns) == [field.name for field in fields]
    for field in fields:
        values = columns[field.name]
        assert values.shape == (len(encoded.starts) - 1, *field.shape)
        assert values.dtype.kind == "U" if field.kind == "string" else values.dtype == field.kind
    return columns


@pytest.mark.parametrize("architecture", EMBEDDERS)
def test_embed_equals_transformers_bit_for_bit(tiny_text: Any, architecture: str) -> None:
    directory = tiny_text(architecture)
    request = ask(directory, "embed")
    texts = TEXTS if not architecture.startswith("GPT2") else [text for text in TEXTS if text]
    encoded = encode(request, texts)
    module = fill(build_task(request, "float32"), directory)
    result = columns_of(request, encoded, run(module, encoded))["embedding"]
    assert np.array_equal(result, reference(directory, request, encoded))
    assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    assert task_wants(request) == {"text": "text"}


@pytest.mark.parametrize("pooling", ["cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"])
def test_every_pooling_equals_the_plain_way(tiny_text: Any, pooling: str) -> None:
    directory = tiny_text("BertModel")
    request = ask(directory, "embed", pooling=pooling, normalize=False)
    encoded = encode(request)
    result = run(fill(build_task(request, "float32"), directory), encoded)["embedding"]
    assert np.array_equal(result, reference(directory, request, encoded))
    assert not np.allclose(result, reference(directory, ask(directory, "embed"), encoded), atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_pooled_in_float32(tiny_text: Any, tmp_path: Path, dtype: str) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"), pooling={"pooling_mode_mean_tokens": True}, dense=((32, 8, "Tanh"),)
    )
    request = ask(directory, "embed")
    encoded = encode(request)
    result = run(fill(build_task(request, dtype), directory, dtype), encoded)["embedding"]
    assert result.dtype == np.float32
    assert np.array_equal(result, reference(directory, request, encoded, dtype))


def test_sentence_transformers_modules_are_followed(tmp_path: Path) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"),
        pooling={"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
        dense=((96, 16, "Tanh"), (16, 6, "Identity")),
        normalize=True,
    )
    request = ask(directory, "embed")
    encoded = encode(request)
    module = fill(build_task(request, "float32"), directory)
    result = columns_of(request, encoded, run(module, encoded))["embedding"]
    assert result.shape == (len(TEXTS), 6)
    assert np.array_equal(result, reference(directory, request, encoded))
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


def test_the_newer_form_of_the_pooling_file(tmp_path: Path) -> None:
    directory = make_tiny(tmp_path, "BertModel")
    add_sentence_modules(directory, pooling={"pooling_mode": ["lasttoken", "mean_sqrt_len_tokens"]})
    request = ask(directory, "embed")
    encoded = encode(request)
    result = run(fill(build_task(request, "float32"), directory), encoded)["embedding"]
    for half, mode in enumerate(["lasttoken", "mean_sqrt_len"]):
        alone = ask(directory, "embed", pooling=mode)
        assert np.array_equal(result[:, 32 * half : 32 * half + 32], reference(directory, alone, encoded))


def test_options_win_over_the_checkpoint(tmp_path: Path) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"), pooling={"pooling_mode_cls_token": True}, normalize=True
    )
    request = ask(directory, "embed", pooling="mean", normalize=False)
    encoded = encode(request)
    result = run(fill(build_task(request, "float32"), directory), encoded)["embedding"]
    assert np.array_equal(result, reference(directory, request, encoded))
    assert not np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-2)
    unsaid = add_sentence_modules(directory, pooling={"pooling_mode_cls_token": True})
    assert not np.allclose(np.linalg.norm(reference(unsaid, ask(unsaid, "embed"), encoded), axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("include", [True, False])
def test_prompts_are_put_before_and_left_out_of_pooling(tmp_path: Path, include: bool) -> None:
    directory = add_sentence_modules(
        make_tiny(tmp_path, "BertModel"),
        pooling={"pooling_mode_mean_tokens": True, "include_prompt": include},
        prompts={"prompts": {"query": "small dog: ", "none": ""}, "default_prompt_name": "query"},
    )
    request = ask(directory, "embed")
    encoded = encode(request)
    assert np.array_equal(encoded.ids, encode(ask(directory, "embed", prompt_name="query")).ids)
    assert np.array_equal(encoded.ids, encode(ask(directory, "embed", prompt="small dog: ")).ids)
    plain = encode(ask(directory, "embed", prompt_name="none"))
    assert (encoded.lengths - plain.lengths == 3).all()
    result = run(fill(build_task(request, "float32"), directory), encoded)["embedding"]
    assert np.array_equal(result, reference(directory, request, encoded))
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
    request = ask(directory, "embed")
    assert row_length(request) == 12
    assert row_length(ask(directory, "embed", max_length=7)) == 7
    assert row_length(ask(directory, "score")) == 64
    upper, lower = encode(request, ["THE CAT"]), encode(request, ["the cat"])
    assert np.array_equal(upper.ids, lower.ids)
    assert encode(request, ["cat " * 50]).lengths == [12]


@pytest.mark.parametrize(
    "architecture",
    [
        f"{family}ForSequenceClassification"
        for family in ("Bert", "Roberta", "DistilBert", "ModernBert", "Llama", "GPT2")
    ],
)
def test_classify_equals_transformers(tiny_text: Any, architecture: str) -> None:
    directory = tiny_text(architecture)
    request = ask(directory, "classify")
    encoded = encode(request, [text for text in TEXTS if text])
    result = columns_of(request, encoded, run(fill(build_task(request, "float32"), directory), encoded))
    scores = torch.softmax(torch.as_tensor(reference(directory, request, encoded)), -1).numpy()
    assert np.array_equal(result["scores"], scores)
    assert np.array_equal(result["score"], scores.max(1))
    assert result["label"].tolist() == [f"class-{best}" for best in scores.argmax(1)]


def test_several_labels_at_once_take_the_sigmoid(tmp_path: Path) -> None:
    settings = {"problem_type": "multi_label_classification"}
    directory = make_tiny(tmp_path, "BertForSequenceClassification", settings=settings)
    request = ask(directory, "classify")
    encoded = encode(request)
    result = run(fill(build_task(request, "float32"), directory), encoded)["scores"]
    expected = torch.sigmoid(torch.as_tensor(reference(directory, request, encoded)))
    assert np.array_equal(result, expected.numpy())


@pytest.mark.parametrize("architecture", CAUSAL)
def test_causal_scores_equal_transformers(tiny_text: Any, architecture: str) -> None:
    directory = tiny_text(architecture)
    request = ask(directory, "score", per_token=True)
    texts = [text for text in TEXTS if text]
    encoded = encode(request, texts)
    columns = columns_of(request, encoded, run(fill(build_task(request, "float32"), directory), encoded))
    whole = ask(directory, "score")
    assert np.array_equal(columns["logprob"], reference(directory, whole, encoded))
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


def test_a_text_of_one_token_predicts_nothing(tiny_text: Any) -> None:
    directory = tiny_text("GPT2LMHeadModel")
    request = ask(directory, "score", per_token=True)
    encoded = encode(request, ["cat", "dog"])
    columns = columns_of(request, encoded, run(fill(build_task(request, "float32"), directory), encoded))
    assert columns["logprob"].tolist() == [0, 0]
    assert columns["num_tokens"].tolist() == [0, 0]
    assert np.isnan(columns["perplexity"]).all()


@pytest.mark.parametrize("architecture", MASKED)
def test_masked_scores_equal_a_plain_loop(tiny_text: Any, architecture: str) -> None:
    directory = tiny_text(architecture)
    request = ask(directory, "score", per_token=True)
    encoded = encode(request)
    arrays = run(fill(build_task(request, "float32"), directory), encoded)
    assert np.array_equal(arrays["token_logprob"], reference(directory, request, encoded))
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


def test_masked_rows_without_any_word_have_no_items(tiny_text: Any) -> None:
    request = ask(tiny_text("BertForMaskedLM"), "score")
    encoded = encode(request, ["", ""])
    assert len(encoded.lengths) == 0
    columns = columns_of(request, encoded, {"token_logprob": np.empty(0, np.float32)})
    assert columns["logprob"].tolist() == [0, 0]


def test_rows_that_cannot_be_computed_are_refused(tiny_text: Any) -> None:
    request = ask(tiny_text("GPT2LMHeadModel"), "score")
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
        ("BertLMHeadModel", "score", "is_decoder"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_refused(tiny_text: Any, architecture: str, task: str, message: str) -> None:
    request = ask(tiny_text(architecture), task)
    with pytest.raises(CheckpointError, match=message):
        build_task(request, "float32")
    with pytest.raises(CheckpointError, match=message):
        task_fields(request, 16)


def test_a_decoder_classifier_without_padding_id_is_refused(tmp_path: Path) -> None:
    directory = make_tiny(tmp_path, "LlamaForSequenceClassification", settings={"pad_token_id": None})
    with pytest.raises(CheckpointError, match="pad_token_id"):
        build_task(ask(directory, "classify"), "float32")


def test_sound_is_no_text(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(d_model=12, encoder_layers=1, decoder_layers=1).to_dict()
    files = {"config.json": json.dumps(config).encode()}
    with pytest.raises(CheckpointError, match="takes input_features, not texts"):
        build_task(TaskRequest("embed", ModelOptions(), "WhisperModel", files), "float32")


def test_what_sentence_transformers_can_do_and_we_cannot_is_refused(tmp_path: Path) -> None:
    directory = add_sentence_modules(make_tiny(tmp_path, "BertModel"), pooling={}, dense=((32, 8, "Tanh"),))
    request = ask(directory, "embed")

    def refuse(path: str, content: Any, error: type[Exception], message: str, **options: Any) -> None:
        files = {**request.files, path: json.dumps(content).encode()}
        changed = TaskRequest("embed", ModelOptions(**options), request.architecture, files)
        with pytest.raises(error, match=message):
            task_fields(changed, 16)

    dense = json.loads(request.files["2_Dense/config.json"])
    refuse("modules.json", [{"path": "", "type": "custom_st.Transformer"}], CheckpointError, "custom_st.Transformer")
    refuse("modules.json", [{"path": "9_P", "type": "sentence_transformers.models.Pooling"}], CheckpointError, "9_P")
    refuse("1_Pooling/config.json", {"pooling_mode": "attention"}, CheckpointError, "'attention'")
    refuse("2_Dense/config.json", dense | {"activation_function": "os.system"}, CheckpointError, "os.system")
    refuse("2_Dense/config.json", dense | {"use_residual": True}, CheckpointError, "plain layer")
    refuse("2_Dense/config.json", dense | {"in_features": 64}, RecipeError, "64 numbers, but pooling makes 32")
    named = {"prompts": {"query": "q: ", "passage": "p: "}}
    refuse("config_sentence_transformers.json", named, RecipeError, "query, passage", prompt_name="document")
    refuse("config_sentence_transformers.json", {}, RecipeError, "has none", prompt_name="query")
    refuse("config_sentence_transformers.json", named, RecipeError, "both", prompt_name="query", prompt="x")


def test_prompts_are_for_embeddings(tiny_text: Any) -> None:
    with pytest.raises(RecipeError, match="takes no prompt"):
        task_fields(ask(tiny_text("GPT2LMHeadModel"), "score", prompt="x"), 16)
