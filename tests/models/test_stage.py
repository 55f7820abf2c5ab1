from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.models.reference import run_unsplit
from daskinfer.models.skeleton import StageModule
from daskinfer.models.stage import RawTensor, _refuse_meta, load_stage
from daskinfer.spec.recipe import ModelOptions
from daskinfer.testing.stages import Batch, cut_checkpoint, make_batch, read_blob, run_through

CUTS = [[0], [0, 2], [0, 1, 3], [0, 1, 2, 3]]
ENCODERS = ["BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "DistilBertModel", "ElectraModel"]


def batches(pad: int) -> list[Any]:
    return [make_batch([12, 9, 3], pad=pad), make_batch([7, 7], pad=pad), make_batch([5], width=8, pad=pad)]


@pytest.mark.parametrize("architecture", ENCODERS)
@pytest.mark.parametrize("starts", CUTS, ids=str)
def test_embed_equals_unsplit_bit_for_bit(tiny: Callable[[str], Path], architecture: str, starts: list[int]) -> None:
    directory = tiny(architecture)
    pad = json.loads((directory / "config.json").read_text())["pad_token_id"]
    stages = cut_checkpoint(directory, starts)
    expected = run_unsplit(directory, batches(pad))
    for batch, wanted in zip(batches(pad), expected, strict=True):
        assert np.array_equal(run_through(stages, batch)["embedding"], wanted)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
@pytest.mark.parametrize("starts", [[0], [0, 3]], ids=str)
def test_classify_equals_unsplit(tiny: Callable[[str], Path], family: str, starts: list[int]) -> None:
    directory = tiny(f"{family}ForSequenceClassification")
    pad = json.loads((directory / "config.json").read_text())["pad_token_id"]
    stages = cut_checkpoint(directory, starts, task="classify")
    expected = run_unsplit(directory, batches(pad), task="classify")
    for batch, logits in zip(batches(pad), expected, strict=True):
        outputs = run_through(stages, batch)
        scores = torch.softmax(torch.from_numpy(logits), -1).numpy()
        assert np.array_equal(outputs["scores"], scores)
        assert np.array_equal(outputs["score"], scores.max(axis=1))
        assert outputs["label"].tolist() == [f"class-{number}" for number in scores.argmax(axis=1)]
        assert outputs["score"].dtype == np.float32


def test_a_classifier_can_embed(tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertForSequenceClassification")
    batch = make_batch([6, 4])
    assert np.array_equal(
        run_through(cut_checkpoint(directory, [0, 2]), batch)["embedding"], run_unsplit(directory, [batch])[0]
    )


@pytest.mark.parametrize("options", [ModelOptions(pooling="cls"), ModelOptions(normalize=False)])
def test_options_decide_the_embedding(tiny: Callable[[str], Path], options: ModelOptions) -> None:
    directory = tiny("BertModel")
    batch = make_batch([6, 4])
    result = run_through(cut_checkpoint(directory, [0, 2], options=options), batch)["embedding"]
    assert np.array_equal(result, run_unsplit(directory, [batch], options=options)[0])
    assert not np.allclose(result, run_unsplit(directory, [batch])[0], atol=1e-3)


@pytest.mark.parametrize(("dtype", "array_type"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_low_precision_equals_unsplit(tiny: Callable[[str], Path], dtype: str, array_type: Any) -> None:
    directory = tiny("BertModel")
    batch = make_batch([11, 6, 2])
    stages = cut_checkpoint(directory, [0, 2], dtype=dtype)
    hidden = stages[0].run(*batch)
    assert isinstance(hidden, np.ndarray)
    assert hidden.dtype == array_type
    embedding = run_through(stages, batch)["embedding"]
    assert embedding.dtype == np.float32
    assert np.array_equal(embedding, run_unsplit(directory, [batch], dtype=dtype)[0])
    assert np.allclose(embedding, run_unsplit(directory, [batch])[0], atol=0.05)


def test_other_batching_agrees_within_rounding(tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertModel")
    ids, lengths = make_batch([12, 9, 3])
    together = run_through(cut_checkpoint(directory, [0, 2]), (ids, lengths))["embedding"]
    alone = [
        run_unsplit(directory, [(ids[row : row + 1, :length], lengths[row : row + 1])])[0][0]
        for row, length in enumerate(lengths)
    ]
    assert np.abs(together - np.stack(alone)).max() < 1e-5


def test_read_only_and_unaligned_activations_give_the_same_bits(tiny: Callable[[str], Path]) -> None:
    first, second = cut_checkpoint(tiny("BertModel"), [0, 2])
    batch = make_batch([12, 9, 3])
    hidden = first.run(*batch)
    assert isinstance(hidden, np.ndarray)
    expected = run_through([first, second], batch)["embedding"]
    frozen = np.frombuffer(b"\0" + hidden.tobytes(), np.float32, offset=1).reshape(hidden.shape)
    result = second.run(*batch, frozen)
    assert isinstance(result, dict)
    assert np.array_equal(result["embedding"], expected)


def test_a_stage_depends_on_what_it_receives(tiny: Callable[[str], Path]) -> None:
    first, second = cut_checkpoint(tiny("BertModel"), [0, 2])
    batch = make_batch([12, 9, 3])
    hidden = first.run(*batch)
    assert isinstance(hidden, np.ndarray)
    result = second.run(*batch, hidden + 1)
    assert isinstance(result, dict)
    assert not np.allclose(result["embedding"], run_through([first, second], batch)["embedding"])


def test_calls_from_several_threads_do_not_mix(tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertModel")
    stages = cut_checkpoint(directory, [0, 2])
    inputs = [make_batch([12 - number % 5, 3]) for number in range(40)]
    expected = run_unsplit(directory, inputs)
    torch.set_num_threads(2)

    def run(batch: Batch) -> Any:
        return run_through(stages, batch)["embedding"], torch.get_num_threads()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, inputs))
    assert all(np.array_equal(result, wanted) for (result, _), wanted in zip(results, expected, strict=True))
    assert {threads for _, threads in results} == {1}


def read_groups(directory: Path, first: int, last: int, task: str = "embed") -> list[str]:
    source = inspect_checkpoint(directory)
    calls = []

    def read(name: str, blob: Callable[[], bytes]) -> dict[str, RawTensor]:
        calls.append(name)
        return read_blob(blob)

    load_stage(
        config=source.files["config.json"],
        task=task,
        options=ModelOptions(),
        groups={group.name: partial(read, group.name, group.blob) for group in source.groups},
        first=first,
        last=last,
        dtype="float32",
    )
    return calls


def test_a_stage_reads_only_its_own_groups(tiny: Callable[[str], Path]) -> None:
    directory = tiny("BertForSequenceClassification")
    assert read_groups(directory, 0, 1) == ["embeddings", "layer.0"]
    assert read_groups(directory, 1, 3) == ["layer.1", "layer.2"]
    assert read_groups(directory, 3, 4) == ["layer.3"]
    assert read_groups(directory, 3, 4, "classify") == ["layer.3", "pooler", "classifier"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("encoder.layer.1.output.dense.bias"), r"missing tensor encoder\.layer\.1\.output"),
        (lambda tensors: tensors.update(odd=("F32", (1,), memoryview(bytes(4)))), "unexpected tensor odd"),
        (
            lambda tensors: tensors.update(
                {"encoder.layer.1.output.dense.bias": ("F32", (31,), memoryview(bytes(124)))}
            ),
            r"shape \(31,\), but the model has \(32,\)",
        ),
        (
            lambda tensors: tensors.update(
                {"encoder.layer.1.output.dense.bias": ("I32", (32,), memoryview(bytes(128)))}
            ),
            "stored as I32",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_wrong_tensors_are_refused(tiny: Callable[[str], Path], change: Callable[[Any], Any], message: str) -> None:
    source = inspect_checkpoint(tiny("BertModel"))
    readers: dict[str, Any] = {group.name: partial(read_blob, group.blob) for group in source.groups}
    tensors = readers["layer.1"]()
    change(tensors)
    readers["layer.1"] = lambda: tensors
    with pytest.raises(CheckpointError, match=message):
        load_stage(
            config=source.files["config.json"],
            task="embed",
            options=ModelOptions(),
            groups=readers,
            first=1,
            last=2,
            dtype="float32",
        )


def test_a_missing_group_is_refused(tiny: Callable[[str], Path]) -> None:
    config = (tiny("BertModel") / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"needs the group 'layer\.1'"):
        load_stage(config=config, task="embed", options=ModelOptions(), groups={}, first=1, last=2, dtype="float32")


def test_stubs_hold_no_parameters_and_meta_weights_are_refused(tiny: Callable[[str], Path]) -> None:
    config = json.loads((tiny("BertForSequenceClassification") / "config.json").read_text())
    module = StageModule(config, "classify", 1, 2)
    names = {name for name, _ in module.named_parameters()}
    assert names and all(name.startswith("model.bert.encoder.layer.1.") for name in names)
    assert not list(module.named_buffers())
    with pytest.raises(CheckpointError, match="has no value after loading"):
        _refuse_meta(module)


def test_minilm_in_three_stages_equals_unsplit(minilm: Path) -> None:
    batches: list[Batch] = [make_batch([64, 40, 17, 9], vocabulary=30000), make_batch([20] * 8, vocabulary=30000)]
    stages = cut_checkpoint(minilm, [0, 2, 4])
    ids, lengths = batches[0]
    batches += [(ids[row : row + 1, :length], lengths[row : row + 1]) for row, length in enumerate(lengths)]
    expected = run_unsplit(minilm, batches)
    for batch, wanted in zip(batches, expected, strict=True):
        assert np.array_equal(run_through(stages, batch)["embedding"], wanted)
    assert np.abs(expected[0] - np.concatenate(expected[2:])).max() < 1e-5
