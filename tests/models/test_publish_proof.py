"""What is published is compared with plain transformers first, with its own weights and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from daskinfer.errors import CheckpointError
from daskinfer.models import publish_proof
from daskinfer.models.checkpoint import inspect_checkpoint
from daskinfer.models.publish_proof import compare_with_transformers
from daskinfer.models.tasks.textmodel import TextInputs
from daskinfer.runtime.checkpoints import publish_checkpoint
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.tinymodels import make_tiny


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "embed"),
        ("BertForSequenceClassification", "classify"),
        ("BertForMaskedLM", "score"),
        ("LlamaForCausalLM", "score"),
    ],
)
def test_a_checkpoint_equals_transformers(tiny: Callable[[str], Path], architecture: str, task: str) -> None:
    found = inspect_checkpoint(tiny(architecture))
    assert compare_with_transformers(found, tiny(architecture)).startswith(f"{task} of 7 texts equals plain")


def test_a_model_that_cannot_fill_a_cache_is_compared_too(tmp_path: Path) -> None:
    sizes = {
        "num_key_value_heads": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "num_experts": 2,
        "use_mamba_kernels": False,
    }
    directory = make_tiny(tmp_path, "JambaForCausalLM", settings=sizes)
    assert compare_with_transformers(inspect_checkpoint(directory), directory).startswith(
        "score of 7 texts equals plain"
    )


def test_other_numbers_are_not_published(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = publish_proof._fill

    def fill_wrong(*arguments: Any) -> Any:
        module = fill(*arguments)
        with torch.no_grad():
            next(iter(module.parameters())).mul_(1.5)
        return module

    registry = Registry(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(publish_proof, "_fill", fill_wrong)
        with pytest.raises(CheckpointError, match="differs from that of transformers by"):
            publish_checkpoint(registry, "tiny", str(tiny("BertModel")))
    assert not registry.versions("tiny")
    resolution = publish_checkpoint(registry, "tiny", str(tiny("BertModel")))
    assert "equals plain" in registry.manifest(resolution.snapshot).provenance["proof"]

    def refuse(*arguments: Any) -> str:
        raise AssertionError("compared again")

    monkeypatch.setattr(publish_proof, "compare_with_transformers", refuse)
    assert publish_checkpoint(registry, "tiny", str(tiny("BertModel"))).snapshot == resolution.snapshot


def test_other_tokens_are_not_published(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encode = publish_proof._encode
    monkeypatch.setattr(
        publish_proof,
        "_encode",
        lambda request: {
            text: inputs | {"input_ids": inputs["input_ids"] + 1} for text, inputs in encode(request).items()
        },
    )
    with pytest.raises(CheckpointError, match=r"its tokens are .* but those of transformers"):
        compare_with_transformers(inspect_checkpoint(tiny("BertModel")), tiny("BertModel"))


def test_what_does_not_fit_is_said(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_proof, "_MEMORY_SHARE", 0.0)
    said = compare_with_transformers(inspect_checkpoint(tiny("BertModel")), tiny("BertModel"))
    assert said.startswith("not compared:")
    assert "free memory" in said


def test_a_model_that_fails_is_no_crash(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("sizes of tensors")

    found, directory = inspect_checkpoint(tiny("BertModel")), tiny("BertModel")
    with monkeypatch.context() as patch:
        patch.setattr(publish_proof._Plain, "forward", fail)
        said = compare_with_transformers(found, directory)
        assert said == "not compared: transformers cannot run it: RuntimeError: sizes of tensors"
    run = TextInputs.run

    def fail_ours(self: TextInputs, model: Any, inputs: Any) -> Any:
        return run(self, model, inputs) if isinstance(model, publish_proof._Plain) else fail()

    monkeypatch.setattr(TextInputs, "run", fail_ours)
    with pytest.raises(CheckpointError, match="it fails, where transformers does not: RuntimeError"):
        compare_with_transformers(found, directory)
