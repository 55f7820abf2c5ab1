"""Stages loaded from a registry, as workers load them, against transformers' own model."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from daskinfer.errors import CheckpointError, CorruptBlob
from daskinfer.models.execution.stage import _refuse_meta
from daskinfer.models.tasks.build import build_task
from daskinfer.runtime.snapshots.checkpoint_publisher import publish_checkpoint
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import Array, cut_checkpoint, request_of, run_through
from daskinfer.testing.models.reference import run_unsplit
from daskinfer.testing.models.tinymodels import make_tiny

EMBEDDERS = [
    "BertModel",
    "T5ForConditionalGeneration",
    "LlamaForCausalLM",
    *(
        pytest.param(name, marks=pytest.mark.late)
        for name in (
            "RobertaModel",
            "DistilBertModel",
            "ElectraModel",
            "ModernBertModel",
            "MPNetModel",
            "DebertaV2Model",
            "BartModel",
            "GPT2LMHeadModel",
            "BertForMaskedLM",
        )
    ),
]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def make_batch(lengths: list[int], vocabulary: int = 60) -> dict[str, Array]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(7).integers(5, vocabulary, mask.shape)
    return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask.astype(np.int64)}


BATCHES = [make_batch([12, 9, 3]), make_batch([7, 7])]


@pytest.mark.parametrize("architecture", EMBEDDERS)
def test_embeddings_equal_the_unsplit_models(registry: Registry, tmp_path: Path, architecture: str) -> None:
    directory = make_tiny(tmp_path / "model", architecture)
    publish_checkpoint(registry, "tiny", str(directory))
    request = request_of(registry, "tiny")
    expected = run_unsplit(directory, BATCHES)
    for stages in (1, 2, 4):
        _, loaded = cut_checkpoint(registry, "tiny", request, stages)
        for batch, wanted in zip(BATCHES, expected, strict=True):
            assert np.array_equal(run_through(loaded, batch)["embedding"], wanted)


@pytest.mark.parametrize("stages", [[0], [0, 3]], ids=str)
def test_scores_of_classes_equal_the_unsplit_models(registry: Registry, tmp_path: Path, stages: list[int]) -> None:
    directory = make_tiny(tmp_path / "model", "RobertaForSequenceClassification")
    publish_checkpoint(registry, "tiny", str(directory))
    _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny", "classify"), stages)
    (logits,) = run_unsplit(directory, BATCHES[:1], task="classify")
    assert np.array_equal(
        run_through(loaded, BATCHES[0])["scores"], torch.softmax(torch.from_numpy(logits), -1).numpy()
    )


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_low_precision_equals_the_unsplit_model(registry: Registry, tmp_path: Path, dtype: str, kind: type) -> None:
    directory = make_tiny(tmp_path / "model", "BertModel")
    publish_checkpoint(registry, "tiny", str(directory))
    _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny"), 2, dtype=dtype)
    carried, _ = loaded[0].run(BATCHES[0])
    assert isinstance(carried, tuple) and carried[0].dtype == kind
    embedding = run_through(loaded, BATCHES[0])["embedding"]
    assert embedding.dtype == np.float32
    assert np.array_equal(embedding, run_unsplit(directory, BATCHES[:1], dtype=dtype)[0])
    assert np.allclose(embedding, run_unsplit(directory, BATCHES[:1])[0], atol=0.05)


def test_frozen_and_unaligned_activations_give_the_same_bits(registry: Registry, tmp_path: Path) -> None:
    publish_checkpoint(registry, "tiny", str(make_tiny(tmp_path / "model", "BertModel")))
    _, (first, second) = cut_checkpoint(registry, "tiny", request_of(registry, "tiny"), 2)
    expected = run_through([first, second], BATCHES[0])["embedding"]
    carried, _ = first.run(BATCHES[0])
    assert isinstance(carried, tuple)
    frozen = np.frombuffer(b"\0" + carried[0].tobytes(), np.float32, offset=1).reshape(carried[0].shape)
    result, _ = second.run(BATCHES[0], (frozen,))
    assert isinstance(result, dict) and np.array_equal(result["embedding"], expected)
    moved, _ = second.run(BATCHES[0], (carried[0] + 1,))
    assert isinstance(moved, dict) and not np.allclose(moved["embedding"], expected)


def test_a_stage_reads_its_own_tensors_and_no_others(registry: Registry, tmp_path: Path) -> None:
    publish_checkpoint(registry, "tiny", str(make_tiny(tmp_path / "model", "LlamaForCausalLM")))
    manifest = registry.manifest(registry.resolve("tiny").snapshot)
    _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny", "score"), 4)
    sizes = {group.name: sum(entry.end - entry.begin for entry in group.tensors) for group in manifest.groups}
    for stage, found in enumerate(loaded):
        wanted = sizes[f"layers.{stage}"]
        wanted += sizes["embed_tokens"] if stage == 0 else 0
        wanted += sizes["norm"] + sizes.get("lm_head", sizes["embed_tokens"]) if stage == 3 else 0
        assert found.read_bytes == wanted


def test_a_tied_tensor_is_stored_once_and_given_to_both_ends(registry: Registry, tmp_path: Path) -> None:
    settings = {"tie_word_embeddings": True}
    directory = make_tiny(tmp_path / "model", "LlamaForCausalLM", settings=settings)
    publish_checkpoint(registry, "tiny", str(directory))
    manifest = registry.manifest(registry.resolve("tiny").snapshot)
    assert manifest.tied == {"lm_head.weight": "embed_tokens.weight"}
    _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny", "score"), 2)
    (expected,) = run_unsplit(directory, BATCHES[:1], task="score")
    assert np.array_equal(run_through(loaded, BATCHES[0])["logprob"], expected)


def test_copies_that_differ_are_not_tied_again(registry: Registry, tmp_path: Path) -> None:
    directory = make_tiny(tmp_path / "model", "LlamaForCausalLM", settings={"tie_word_embeddings": True})
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, file, metadata={"format": "pt"})
    publish_checkpoint(registry, "tiny", str(directory))
    assert not registry.manifest(registry.resolve("tiny").snapshot).tied
    (expected,) = run_unsplit(directory, BATCHES[:1], task="score")
    for stages in (1, 2):
        _, loaded = cut_checkpoint(registry, "tiny", request_of(registry, "tiny", "score"), stages)
        assert np.array_equal(run_through(loaded, BATCHES[0])["logprob"], expected)


def test_a_damaged_tensor_is_refused_by_the_stage_that_needs_it(registry: Registry, tmp_path: Path) -> None:
    publish_checkpoint(registry, "tiny", str(make_tiny(tmp_path / "model", "BertModel")))
    request = request_of(registry, "tiny")
    group = registry.manifest(registry.resolve("tiny").snapshot).group("encoder.layer.1")
    blob = Path(registry.url, str(group.blob))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(CorruptBlob, match=r"layer group encoder\.layer\.1"):
        cut_checkpoint(registry, "tiny", request, 4)


def test_weights_that_were_left_out_are_refused(tmp_path: Path, registry: Registry) -> None:
    publish_checkpoint(registry, "tiny", str(make_tiny(tmp_path / "model", "BertModel")))
    with pytest.raises(CheckpointError, match="has no value after loading"):
        _refuse_meta(build_task(request_of(registry, "tiny"), "float32"))


def test_minilm_in_three_stages_equals_the_unsplit_model(registry: Registry, minilm: Path) -> None:
    publish_checkpoint(registry, "minilm", str(minilm), reference=True)
    batches = [make_batch([64, 40, 17, 9], 30000), make_batch([20] * 8, 30000)]
    _, loaded = cut_checkpoint(registry, "minilm", request_of(registry, "minilm", options=ModelOptions()), [0, 2, 4])
    for batch, wanted in zip(batches, run_unsplit(minilm, batches), strict=True):
        assert np.array_equal(run_through(loaded, batch)["embedding"], wanted)
