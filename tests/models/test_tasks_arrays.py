from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from daskinfer.errors import CheckpointError, InputError
from daskinfer.models.architecture import stored_prefix
from daskinfer.models.arrays import Array, ArrayEncoder
from daskinfer.models.entry import find_entry
from daskinfer.models.tasks.forward import Forward, make_forward
from daskinfer.models.tasks.images import ImageEmbedder, make_image_classify, make_image_embed
from daskinfer.models.tasks.kinds import fields_of_outputs, is_image_model
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.spec.outline import Dim, InputArray, TensorSpec
from daskinfer.spec.recipe import ModelOptions
from daskinfer.testing.taskcases import CLASSIFY_IMAGES, EMBED_IMAGES
from daskinfer.testing.zoo import ZOO, ZooCase, make_inputs, make_model

CASES = {case.name: case for case in ZOO}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
ROWS: Dim = (0, 1, 0, 0)


def make_request(
    task: str, architecture: str, config: Any, arrays: tuple[InputArray, ...] = (), **options: Any
) -> TaskRequest:
    files = {"config.json": json.dumps(config).encode(), "preprocessor_config.json": json.dumps(PROCESSOR).encode()}
    return TaskRequest(task, ModelOptions(**options), architecture, files, arrays=arrays)


def give_weights(module: TaskModule, plain: nn.Module) -> None:
    """Load a module as a stage does, from what a snapshot of `plain` holds, and from nothing else."""
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())
    snapshot = {name.removeprefix(stored_prefix(plain)): tensor for name, tensor in plain.state_dict().items()}
    module.load_state_dict({name: snapshot[module.stored_name(name)] for name in module.state_dict()}, assign=True)


def pixels_of(case: ZooCase) -> Tensor:
    return make_inputs(case, 3, 4, 0)["pixel_values"]


@pytest.mark.parametrize(("name", "architecture"), CLASSIFY_IMAGES)
def test_image_classify_is_the_plain_model(name: str, architecture: str) -> None:
    config = dict(CASES[name].config or {}) | {"id2label": {0: "a", 1: "b", 2: "c"}}
    plain = make_model(architecture, config)
    module = make_image_classify(make_request("classify", architecture, config), "float32")
    give_weights(module, plain)
    assert module.inputs == (InputArray(name="pixel_values", dtype="float32", shape=(3, 32, 32)),)
    pixels = pixels_of(CASES[name])
    with torch.inference_mode():
        scores = module(pixel_values=pixels)["scores"]
        wanted = torch.softmax(plain(pixel_values=pixels).logits, dim=-1)
    assert scores.shape == (3, 3)
    assert torch.equal(scores, wanted)


def test_a_mask_that_the_model_would_use_is_refused() -> None:
    config = {
        "model_type": "vilt",
        "architectures": ["ViltForImagesAndTextClassification"],
        "num_images": 1,
        "image_size": 32,
    }
    config |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    request = make_request("embed", "ViltModel", config)
    padded = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 32, "longest_edge": 32}}
    settings = padded | {"pad_size": {"height": 40, "width": 40}, "do_pad": True}
    request = replace(request, files={**request.files, "preprocessor_config.json": json.dumps(settings).encode()})
    with pytest.raises(CheckpointError, match="pixel_mask beside the pixels, and ViltModel uses it"):
        make_image_embed(request, "float32")


@pytest.mark.parametrize(
    ("problem", "activation"), [("multi_label_classification", torch.sigmoid), ("regression", nn.Identity())]
)
def test_the_problem_type_decides_the_activation(problem: str, activation: Any) -> None:
    config = dict(CASES["vit"].config or {}) | {"problem_type": problem}
    plain = make_model("ViTForImageClassification", config)
    module = make_image_classify(make_request("classify", "ViTForImageClassification", config), "float32")
    give_weights(module, plain)
    with torch.inference_mode():
        logits = plain(pixel_values=pixels_of(CASES["vit"])).logits
        assert torch.equal(module(pixel_values=pixels_of(CASES["vit"]))["scores"], activation(logits))


def test_what_cannot_classify_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no trained image classifier"):
        make_image_classify(make_request("classify", "ViTModel", dict(CASES["vit"].config or {})), "float32")


def embed(architecture: str, name: str, **options: Any) -> tuple[Tensor, Any]:
    """The task's embedding and what the plain model of the checkpoint's class returns."""
    config = dict(CASES[name].config or {})
    if architecture.startswith("CLIPVision"):
        config = config["vision_config"] | {"model_type": "clip_vision_model", "projection_dim": 16}
    plain: Any = make_model(architecture, config)
    module = make_image_embed(make_request("embed", architecture, config, **options), "float32")
    give_weights(module, plain)
    pixels = pixels_of(CASES[name])
    with torch.inference_mode():
        base = plain if architecture.endswith("Model") else getattr(plain, plain.base_model_prefix, plain)
        if architecture == "CLIPModel":
            output = plain.get_image_features(pixel_values=pixels)
        else:
            output = (plain if "Projection" in architecture else base)(pixel_values=pixels)
        return module(pixel_values=pixels)["embedding"], output


@pytest.mark.parametrize(("name", "architecture"), EMBED_IMAGES)
def test_image_embed_takes_the_models_own_pooling(name: str, architecture: str) -> None:
    embedding, output = embed(architecture, name, normalize=False)
    assert torch.equal(embedding, output.pooler_output.flatten(1))


def test_image_embed_never_runs_an_untrained_pooler() -> None:
    embedding, output = embed("ViTForImageClassification", "vit", normalize=False)
    assert output.pooler_output is None
    assert torch.equal(embedding, output.last_hidden_state.mean(1))


def test_image_embed_pools_as_it_is_told() -> None:
    embedding, output = embed("Dinov2Model", "dinov2", pooling="cls")
    assert torch.equal(embedding, torch.nn.functional.normalize(output.last_hidden_state[:, 0], dim=1))
    embedding, output = embed("ConvNextForImageClassification", "convnext", pooling="mean", normalize=False)
    assert torch.equal(embedding, output.last_hidden_state.flatten(2).mean(2))
    for name, pooling in (("resnet", "cls"), ("vit", "lasttoken")):
        with pytest.raises(CheckpointError, match=f"pooling is {pooling}"):
            embed(CASES[name].architecture, name, pooling=pooling)


def test_clip_embeds_images_with_its_projection() -> None:
    assert embed("CLIPModel", "clip", normalize=False)[0].shape == (3, 16)
    embedding, output = embed("CLIPVisionModelWithProjection", "clip", normalize=False)
    assert torch.equal(embedding, output.image_embeds)


@pytest.mark.parametrize("is_list", [False, True])
def test_one_vector_for_every_patch_is_none_for_the_image(is_list: bool) -> None:
    class Wordy(nn.Module):
        def forward(self, pixel_values: Tensor) -> Any:
            pooled = pixel_values.flatten(2)
            return BaseModelOutputWithPooling(pooler_output=list(pooled) if is_list else pooled)  # type: ignore[arg-type]

    image = InputArray(name="pixel_values", dtype="float32", shape=(3, 4, 4))
    module = ImageEmbedder(Wordy(), (), image, ModelOptions())
    with pytest.raises(CheckpointError, match=r"(\[3, 16\]|a list), one vector for every patch"):
        module(pixel_values=torch.ones(2, 3, 4, 4))
    assert is_list or module(pixel_values=torch.ones(2, 3, 1, 1))["embedding"].shape == (2, 3)


def test_siglip_embeds_images() -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = vision | {"vocab_size": 96, "max_position_embeddings": 16, "projection_size": 32}
    config = {
        "model_type": "siglip",
        "text_config": text,
        "vision_config": vision | {"image_size": 32, "patch_size": 8},
    }
    plain: Any = make_model("SiglipModel", config)
    module = make_image_embed(make_request("embed", "SiglipModel", config, normalize=False), "float32")
    give_weights(module, plain)
    pixels = pixels_of(CASES["vit"])
    with torch.inference_mode():
        wanted = plain.get_image_features(pixel_values=pixels).pooler_output
        assert torch.equal(module(pixel_values=pixels)["embedding"], wanted)


@pytest.mark.parametrize("name", ["t5", "llama", "segformer", "whisper"])
def test_forward_is_the_plain_model(name: str) -> None:
    case = CASES[name]
    plain, arrays = case.make()
    module = make_forward(make_request("forward", case.architecture, case.config, arrays), "float32")
    give_weights(module, plain)
    inputs = make_inputs(case, 3, 7, 1)
    with torch.inference_mode():
        outputs, wanted = module(**inputs), plain(**inputs)
    assert outputs.keys() == {"logits", "encoder_last_hidden_state"} & wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in outputs.items())


def make_own_request(name: str, **changes: Any) -> TaskRequest:
    case = CASES[name]
    entry = find_entry(f"daskinfer.testing.ownmodels:{case.architecture}")
    return replace(make_request("forward", case.architecture, {}, case.inputs), entry=entry, **changes)


@pytest.mark.parametrize(
    ("name", "outputs"), [("unet", {"mask"}), ("own", {"scores", "norm"}), ("sequential", {"output"})]
)
def test_forward_runs_modules_of_the_users_own(name: str, outputs: set[str]) -> None:
    case = CASES[name]
    # A Sequential's array is called as its column is.
    arrays = tuple(array.model_copy(update={"name": "any"}) for array in case.inputs) if name == "sequential" else None
    module = make_forward(make_own_request(name, arrays=arrays or case.inputs), "float32")
    plain = case.build()
    give_weights(module, plain)
    inputs = make_inputs(case, 4, 1, 1)
    with torch.inference_mode():
        got = module(**{array.name: value for array, value in zip(module.inputs, inputs.values(), strict=True)})
        wanted = plain(*inputs.values())
    assert got.keys() == outputs
    for key, value in got.items():
        assert torch.equal(value, wanted if name == "sequential" else wanted[key])


def test_forward_refuses_two_arrays_for_a_sequential() -> None:
    array = InputArray(name="x", dtype="float32", shape=(8,))
    with pytest.raises(CheckpointError, match="takes one array; the recipe gives 2"):
        make_forward(make_own_request("sequential", arrays=(array, array)), "float32")


class Odd(nn.Module):
    """Returns what it is given; not all of it belongs to rows."""

    def forward(self, x: Tensor) -> Any:
        return x, None, [x], x.sum(), torch.zeros(99), x.half()


def test_only_tensors_with_rows_first_come_out() -> None:
    outputs = Forward(Odd(), (), ())(x=torch.ones(2, 3))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in outputs.items()} == {
        "output_0": (torch.float32, (2, 3)),
        "output_2_0": (torch.float32, (2, 3)),
        "output_5": (torch.float32, (2, 3)),
    }


def test_half_precision_comes_out_as_float32() -> None:
    case = CASES["segformer"]
    module = make_forward(make_request("forward", case.architecture, case.config, case.inputs), "bfloat16")
    give_weights(module, case.build().to(torch.bfloat16))
    with torch.inference_mode():
        logits = module(pixel_values=pixels_of(case).bfloat16())["logits"]
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (("pixel_value",), "does not take pixel_value; it takes pixel_values"),
        ((), "wants pixel_values"),
    ],
)
def test_forward_refuses_names_that_the_model_does_not_take(arrays: tuple[str, ...], message: str) -> None:
    case = CASES["vit"]
    named = tuple(InputArray(name=name, dtype="float32", shape=(3, 32, 32)) for name in arrays)
    with pytest.raises(CheckpointError, match=message):
        make_forward(make_request("forward", case.architecture, case.config, named), "float32")


def test_fields_follow_from_the_outputs() -> None:
    outputs = {
        "norm": TensorSpec(dtype="bfloat16", dims=(ROWS,)),
        "mask": TensorSpec(dtype="int64", dims=(ROWS, (2, 0, 0, 0), (16, 0, 0, 0))),
    }
    fields = fields_of_outputs(outputs)
    assert [(field.name, field.kind, field.shape) for field in fields] == [
        ("norm", "float32", ()),
        ("mask", "int64", (2, 16)),
    ]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (((4, 0, 0, 0),), "bad does not have one value for every row"),
        (((0, 2, 0, 0),), "bad does not have one value for every row"),
        ((), "bad does not have one value for every row"),
        ((ROWS, ROWS), "bad grows with the number of rows in its dimension 1"),
        ((ROWS, (3, 0, 0, 0), (0, 0, 1, 0)), "bad grows with the padded length in its dimension 2"),
    ],
)
def test_outputs_without_one_shape_a_row_are_refused(dims: tuple[Dim, ...], message: str) -> None:
    good = TensorSpec(dtype="float32", dims=(ROWS,))
    with pytest.raises(CheckpointError, match=message) as caught:
        fields_of_outputs({"good": good, "bad": TensorSpec(dtype="float32", dims=dims)})
    assert "good" not in caught.value.message
    with pytest.raises(CheckpointError, match="there are none"):
        fields_of_outputs({})


def test_arrays_are_cast_and_unfit_rows_refused() -> None:
    arrays = (
        InputArray(name="ids", dtype="int64", shape=(3,), bound=10),
        InputArray(name="small", dtype="int32", shape=()),
        InputArray(name="x", dtype="float32", shape=(768,)),
    )
    encoder = ArrayEncoder(make_request("forward", "Any", {}, arrays))
    columns: dict[str, Array] = {
        "ids": np.array([[1, 2, 3], [1, 10, 3], [4, 5, 6], [-1, 0, 0]], np.int32),
        "small": np.array([0, 1, 2**40, 3], np.int64),
        "x": np.ones((4, 768)),
    }
    rows, refused = encoder.encode(columns)
    assert refused == {
        1: "ids: 10 is not between 0 and 9",
        2: "small: 1099511627776 is not between -2147483648 and 2147483647",
        3: "ids: -1 is not between 0 and 9",
    }
    assert {name: (str(array.dtype), array.shape) for name, array in rows.arrays.items()} == {
        "ids": ("int64", (1, 3)),
        "small": ("int32", (1,)),
        "x": ("float32", (1, 768)),
    }
    assert rows.lengths.tolist() == [2]
    for name, values, message in (
        ("x", np.ones((4, 7)), r"rows have the shape \(7,\), the model takes \(768,\)"),
        ("ids", np.ones((4, 3)), "float64, which cannot be turned into the model's int64"),
    ):
        with pytest.raises(InputError, match=message):
            encoder.encode(columns | {name: values})
    with pytest.raises(InputError, match="'x', which the input does not have"):
        encoder.encode({name: columns[name] for name in ("ids", "small")})


def test_token_ids_are_bounded_by_the_vocabulary() -> None:
    arrays = (InputArray(name="decoder_input_ids", dtype="int64", shape=(2,)),)
    encoder = ArrayEncoder(make_request("forward", "Any", {"model_type": "bert", "vocab_size": 96}, arrays))
    assert encoder.encode({"decoder_input_ids": np.array([[1, 95], [96, 1]])})[1].keys() == {1}


@pytest.mark.parametrize(
    ("config", "files", "answer"),
    [
        ({"architectures": ["ViTForImageClassification"]}, {}, True),
        ({"architectures": ["Dinov2Model"], "num_channels": 3}, {}, True),
        ({"architectures": ["CLIPModel"]}, {"preprocessor_config.json": b'{"image_mean": [0, 0, 0]}'}, True),
        (
            {"architectures": ["CLIPModel"]},
            {"processor_config.json": b'{"image_processor": {"do_resize": true}}'},
            True,
        ),
        ({"architectures": ["BertModel"], "vocab_size": 9}, {}, False),
        (
            {"architectures": ["WhisperModel"], "vocab_size": 9},
            {"preprocessor_config.json": b'{"hop_length": 1}'},
            False,
        ),
        (
            {"architectures": ["LlavaForConditionalGeneration"]},
            {"preprocessor_config.json": b'{"image_processor_type": "CLIPImageProcessor"}'},
            False,
        ),
        ({}, {}, False),
    ],
)
def test_image_models_are_told_by_their_files(config: dict[str, Any], files: dict[str, bytes], answer: bool) -> None:
    assert is_image_model(config, files) is answer


def test_a_processor_file_that_is_no_json_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is not JSON"):
        is_image_model({}, {"preprocessor_config.json": b"{"})


def test_the_zoo_is_deterministic_and_pads() -> None:
    assert len(CASES) == len(ZOO)
    case = CASES["bert"]
    first, second = case.make()[0].state_dict(), case.make()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    inputs = make_inputs(case, 4, 9, 2)
    assert torch.equal(inputs["input_ids"], make_inputs(case, 4, 9, 2)["input_ids"])
    assert not torch.equal(inputs["input_ids"], make_inputs(case, 4, 9, 3)["input_ids"])
    lengths = inputs["attention_mask"].sum(1)
    assert lengths[0] == 9
    assert lengths.min() < 9
    assert int(inputs["input_ids"].max()) < 96
