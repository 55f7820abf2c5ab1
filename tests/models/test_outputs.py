"""What `embed`, `classify` and `forward` return: the model's own numbers, all of them, or a reason by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import instantiate, make_config, stored_prefix
from daskinfer.models.request import TaskRequest
from daskinfer.models.splitting.outlining import make_outline
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.fields import class_fields, task_fields
from daskinfer.models.tasks.forward import Forward
from daskinfer.models.tasks.kinds import fields_of_outputs
from daskinfer.models.tasks.module import TaskModule
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.testing.models.modeltable import without_weights
from daskinfer.testing.models.ownmodels import fill_weights
from daskinfer.testing.models.zoosettings import SMALL_ENCODER, VISION

CLIP_TEXT = SMALL_ENCODER | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLIP = {"projection_dim": 16, "text_config": CLIP_TEXT, "vision_config": VISION | {"num_hidden_layers": 2}}
DPR = SMALL_ENCODER | {"projection_dim": 12}


def load(architecture: str, config: dict[str, Any], **options: Any) -> tuple[TaskModule, Any, TaskRequest]:
    """An embedding module with random weights, the plain model with the same, and the request."""
    torch.set_num_threads(1)
    model_class: Any = getattr(transformers, architecture)
    config = {"model_type": model_class.config_class.model_type, "architectures": [architecture], **config}
    request = TaskRequest("embed", ModelOptions(**options), architecture, {"config.json": json.dumps(config).encode()})
    module = build_task(request, "float32")
    plain: Any = fill_weights(instantiate(model_class, make_config(config), torch.float32))
    stored = {name.removeprefix(stored_prefix(plain)): tensor for name, tensor in plain.state_dict().items()}
    module.load_state_dict({name: stored[module.stored_name(name)] for name in module.state_dict()}, assign=True)
    return module, plain, request


def take_features(plain: Any, ids: Tensor) -> Tensor:
    output = plain.get_text_features(input_ids=ids)
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


@pytest.mark.parametrize(
    ("architecture", "config", "take"),
    [
        ("CLIPTextModelWithProjection", CLIP_TEXT | {"projection_dim": 16}, lambda plain, ids: plain(ids).text_embeds),
        ("CLIPModel", CLIP, take_features),
        ("DPRQuestionEncoder", DPR, lambda plain, ids: plain(ids).pooler_output),
        ("DPRContextEncoder", DPR, lambda plain, ids: plain(ids).pooler_output),
    ],
)
def test_a_projection_gives_the_vector_that_the_model_makes(
    architecture: str, config: dict[str, Any], take: Callable[[Any, Tensor], Tensor]
) -> None:
    module, plain, request = load(architecture, config)
    rows = [torch.tensor([1, 7, 9, 30, 2]), torch.tensor([1, 8, 2])]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.inference_mode():
        found = module(input_ids=ids, attention_mask=mask)["embedding"]
        for vector, row in zip(found, rows, strict=True):
            assert torch.allclose(vector, nn.functional.normalize(take(plain, row[None])[0], dim=0), atol=1e-6)
    outline = make_outline(build_task(request, "float32"), module.inputs, task="embed", dtype="float32")
    assert outline.uncut is None
    (field,) = task_fields(request, 64, outline.outputs)
    assert (field.name, field.shape) == ("embedding", (found.shape[1],))


def test_a_projection_follows_no_other_pooling() -> None:
    with pytest.raises(CheckpointError, match="has a projection of its own"):
        load("CLIPTextModelWithProjection", CLIP_TEXT, pooling="mean")


@pytest.mark.parametrize("name", ["HF_ColBERT", "ColBERT"])
def test_a_vector_for_every_token_is_no_embedding_of_a_text(name: str) -> None:
    config = {"model_type": "bert", "architectures": [name], **SMALL_ENCODER}
    request = TaskRequest("embed", ModelOptions(), "BertModel", {"config.json": json.dumps(config).encode()})
    with pytest.raises(CheckpointError, match=f"{name} cannot embed texts: it makes a vector for every token"):
        build_task(request, "float32")


def test_a_hidden_state_of_other_things_than_the_tokens_is_refused() -> None:
    config = {"model_type": "funnel", "architectures": ["FunnelBaseModel"], "vocab_size": 96, "d_model": 32}
    config |= {"block_sizes": [1, 1], "n_head": 4, "d_head": 8, "d_inner": 64, "num_decoder_layers": 1}
    request = TaskRequest("embed", ModelOptions(), "FunnelBaseModel", {"config.json": json.dumps(config).encode()})
    module = build_task(request, "float32")
    module.model = instantiate(transformers.FunnelBaseModel, make_config(config), torch.float32).to("meta")
    with pytest.raises(CheckpointError, match="FunnelBaseModel cannot embed texts: it has a last hidden state that is"):
        make_outline(module, module.inputs, task="embed", dtype="float32")


class Rich(nn.Module):
    """Returns whatever a model may return."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Any]:
        first, second = self.layers[0](x), torch.tanh(self.layers[1](x))
        last = self.layers[2](second)
        return {
            "hidden_states": (first, [second, last]),
            "nested": {"half": last.bfloat16(), "small": last.to(torch.int8)},
            "is_large": last > 0,
            "wave": torch.complex(last, last),
            "loss": last.mean(),
            "five": torch.ones(5, 4) * last.mean(),
            "likeness": last @ last.T,
            "word": "yes",
            "nothing": None,
        }


ARRAY = (InputArray(name="x", dtype="float32", shape=(4,)),)


def test_forward_writes_every_tensor_and_names_what_it_leaves_out() -> None:
    module = Forward(without_weights(Rich()), (), ARRAY)
    outline = make_outline(module, module.inputs, task="forward", dtype="float32")
    assert outline.uncut is None
    assert outline.left_out == {
        "word": "is a str and no tensor",
        "wave": "is complex64, which no output format has",
        "loss": "does not have one value for every row",
        "five": "does not have one value for every row",
        "likeness": "grows with the number of rows in its dimension 1",
    }
    fields = {field.name: field.kind for field in fields_of_outputs(outline.outputs)}
    assert fields == {
        "hidden_states_0": "float32",
        "hidden_states_1_0": "float32",
        "hidden_states_1_1": "float32",
        "nested_half": "float32",
        "nested_small": "int32",
        "is_large": "bool",
    }
    plain = fill_weights(Rich())
    x = torch.randn(3, 4)
    found = Forward(plain, (), ARRAY)(x=x)
    wanted = plain(x)
    assert torch.equal(found["hidden_states_1_1"], wanted["hidden_states"][1][1])
    assert torch.equal(found["nested_half"], wanted["nested"]["half"].float())
    assert torch.equal(found["nested_small"], wanted["nested"]["small"].int())


class Lone(nn.Linear):
    """Returns one number for all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean()


def test_forward_refuses_a_model_without_an_output_for_every_row() -> None:
    module = Forward(without_weights(Lone(4, 4)), (), ARRAY)
    with pytest.raises(CheckpointError, match="output does not have one value for every row"):
        make_outline(module, module.inputs, task="forward", dtype="float32")


@dataclass
class Logits:
    logits: Any


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"0": "a", "2": "b"}, "names the classes 0, 2, and not 0 to 1"),
        ({"x": "a", "y": "b"}, "names the classes x, y, and not 0 to 1"),
    ],
)
def test_classes_without_a_name_of_their_own_are_refused(names: dict[str, str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        class_fields({"id2label": names})


def test_two_classes_may_have_one_name() -> None:
    assert class_fields({"id2label": {"1": "same", "0": "same"}})[2].shape == (2,)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 3)])
def test_a_classifier_with_another_number_of_outputs_than_names_is_refused(shape: tuple[int, ...]) -> None:
    from daskinfer.models.tasks.classify import score_classes

    config = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    assert score_classes(Logits(torch.zeros(2, 3)), config).shape == (2, 3)
    with pytest.raises(CheckpointError, match="id2label names 3 classes, but the classifier returns"):
        score_classes(Logits(torch.zeros(shape)), config)


def test_several_labels_at_once_are_scored_each_by_itself() -> None:
    from daskinfer.models.tasks.classify import score_classes

    config = {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}
    assert score_classes(Logits(torch.zeros(1, 2)), config).tolist() == [[0.5, 0.5]]
