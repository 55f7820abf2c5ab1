"""Families with a part of their own: every row of a padded microbatch against plain transformers on that row alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import stored_prefix
from daskinfer.models.outlining import make_outline
from daskinfer.models.probe_lengths import choose_lengths
from daskinfer.models.row_proof import prove_sharing
from daskinfer.models.score_proof import prove_sight
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.models.tasks.score import CausalScore
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe import ModelOptions
from daskinfer.testing.scorecases import SCORE_MORE
from daskinfer.testing.taskcases import EMBED_ALONE, SCORE_ALONE
from daskinfer.testing.zoo import ZOO, make_inputs, make_model
from daskinfer.testing.zoosettings import SMALL_DECODER, SMALL_ENCODER

TOLERANCE = 2e-5


def load(name: str, task: str) -> tuple[TaskModule, torch.nn.Module]:
    """A task's module on a case of the zoo, and the plain model with the same weights."""
    case = next(case for case in ZOO if case.name == name)
    plain, inputs = case.make()
    return fill(plain, task, case.config, inputs if task == "forward" else ())


def fill(
    plain: torch.nn.Module, task: str, config: Mapping[str, Any] | None, arrays: tuple[InputArray, ...] = ()
) -> tuple[TaskModule, torch.nn.Module]:
    """A task's module with a plain model's weights, and the plain model."""
    torch.set_num_threads(1)
    request = TaskRequest(task, ModelOptions(), type(plain).__name__, request_files(config), None, arrays)
    module = build_task(request, "float32")
    stored = {name.removeprefix(stored_prefix(plain)): tensor for name, tensor in plain.state_dict().items()}
    module.load_state_dict({name: stored[module.stored_name(name)] for name in module.state_dict()}, assign=True)
    return module, plain


def texts() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Token ids and mask of a padded microbatch, and the rows by themselves."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, 96, (length,), generator=generator) for length in (3, 21, 9, 1)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask, rows


def run(module: TaskModule, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    given = {"input_ids": ids, "attention_mask": mask}
    with torch.inference_mode():
        output: dict[str, Tensor] = module(
            **{one.name: given.get(one.name, torch.zeros_like(ids)) for one in module.inputs}
        )
    return output


@pytest.mark.parametrize(("name", "architecture"), EMBED_ALONE)
def test_a_text_among_longer_ones_has_the_vector_that_it_has_alone(name: str, architecture: str) -> None:
    module, plain = load(name, "embed")
    encoder = plain.get_encoder() if plain.config.is_encoder_decoder else plain  # type: ignore[operator, union-attr]
    ids, mask, rows = texts()
    found = run(module, ids, mask)["embedding"]
    assert type(plain).__name__ == architecture
    with torch.inference_mode():
        for vector, row in zip(found, rows, strict=True):
            hidden = encoder(input_ids=row[None]).last_hidden_state[0]
            assert torch.allclose(vector, torch.nn.functional.normalize(hidden.mean(0), dim=0), atol=TOLERANCE)


@pytest.mark.parametrize(("name", "architecture"), SCORE_ALONE)
def test_a_text_among_longer_ones_has_the_probability_that_it_has_alone(name: str, architecture: str) -> None:
    module, plain = load(name, "score")
    assert type(plain).__name__ == architecture
    check_probabilities(module, plain)


def check_probabilities(module: TaskModule, plain: torch.nn.Module) -> None:
    ids, mask, rows = texts()
    found = run(module, ids, mask)["logprob"]
    with torch.inference_mode():
        for value, row in zip(found, rows, strict=True):
            logits = plain(input_ids=row[None]).logits[0, :-1].log_softmax(-1)
            assert np.isclose(value, logits.gather(1, row[1:, None]).sum(), atol=20 * TOLERANCE)


@pytest.mark.late
@pytest.mark.parametrize("architecture", SCORE_MORE)
def test_further_decoders_score_a_text_as_alone(architecture: str) -> None:
    model_class: Any = getattr(transformers, architecture)
    config = {
        "model_type": model_class.config_class.model_type,
        "architectures": [architecture],
        **SMALL_DECODER,
        **SCORE_MORE[architecture],
    }
    module, plain = fill(make_model(architecture, config), "score", config)
    assert isinstance(module, CausalScore)
    check_probabilities(module, plain)
    lengths = choose_lengths(config, 32)
    empty = build_task(TaskRequest("score", ModelOptions(), architecture, request_files(config)), "float32")
    assert isinstance(empty, CausalScore)
    outline = make_outline(empty, empty.inputs, task="score", dtype="float32")
    prove_sight(empty, outline, 32)
    assert prove_sharing(empty, outline, lengths).is_free


def test_a_class_that_no_auto_class_lists_is_taken_itself() -> None:
    config = {"model_type": "emu3_text_model", "architectures": ["Emu3ForCausalLM"], **SMALL_DECODER}
    module, plain = fill(make_model("Emu3ForCausalLM", config), "score", config)
    check_probabilities(module, plain)


def test_a_model_with_more_embeddings_than_tokens_is_tried_on_its_tokens() -> None:
    config = {"model_type": "cpmant", "architectures": ["CpmAntForCausalLM"], "hidden_size": 32, "dim_head": 8}
    config |= {"num_attention_heads": 4, "dim_ff": 64, "num_hidden_layers": 1, "vocab_size": 96, "prompt_length": 4}
    module = build_task(TaskRequest("score", ModelOptions(), "CpmAntForCausalLM", request_files(config)), "float32")
    assert module.inputs[0].bound == 96


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_a_model_without_its_kernel_is_refused(task: str) -> None:
    name = "MraModel" if task == "embed" else "MraForSequenceClassification"
    config = {"model_type": "mra", "architectures": [name], **SMALL_ENCODER}
    with pytest.raises(CheckpointError, match=f"{name} needs mra_cuda_kernel, which is not here"):
        build_task(TaskRequest(task, ModelOptions(), name, request_files(config)), "float32")


def test_a_classifier_that_looks_for_no_padding_needs_no_padding_id() -> None:
    name = "PerceiverForSequenceClassification"
    config = {"model_type": "perceiver", "architectures": [name], "num_latents": 4, "d_latents": 16, "d_model": 16}
    config |= {"num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    config |= {"vocab_size": 96, "max_position_embeddings": 32, "num_labels": 3}
    module, plain = fill(make_model(name, config), "classify", config)
    ids, mask, rows = texts()
    scores = run(module, ids, mask)["scores"]
    with torch.inference_mode():
        for values, row in zip(scores, rows, strict=True):
            assert torch.allclose(values, plain(row[None]).logits[0].softmax(-1), atol=TOLERANCE)


def test_a_model_of_language_that_cannot_be_run_is_refused_by_name() -> None:
    case = next(case for case in ZOO if case.name == "llama")
    module = build_task(TaskRequest("score", ModelOptions(), case.architecture, request_files(case.config)), "float32")
    assert isinstance(module, CausalScore)
    outline = make_outline(module, module.inputs, task="score", dtype="float32")
    module.model.forward = fail
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM cannot compute rows of 12 tokens .*: no such place"):
        prove_sight(module, outline, 32)


def fail(**_: Tensor) -> Tensor:
    raise IndexError("no such place")


def request_files(config: Mapping[str, Any] | None) -> dict[str, bytes]:
    return {"config.json": json.dumps(config).encode()}


def test_further_decoders_are_named_on_the_page_of_models() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    names = page.partition("`score` is tested further, row by row, on ")[2].partition(".")[0]
    assert names.split() == [f"{name}," for name in list(SCORE_MORE)[:-1]] + [list(SCORE_MORE)[-1]]


@pytest.mark.parametrize("name", ["dinov3", "detr", "timesfm"])
def test_an_array_among_others_has_the_outputs_that_it_has_alone(name: str) -> None:
    module, plain = load(name, "forward")
    inputs = make_inputs(next(case for case in ZOO if case.name == name), 4, 1, 5)
    with torch.inference_mode():
        found = module(**inputs)
        for row in range(4):
            alone = plain(**{key: value[row : row + 1] for key, value in inputs.items()})
            for key, values in found.items():
                assert torch.allclose(values[row], alone[key][0], atol=TOLERANCE), key
