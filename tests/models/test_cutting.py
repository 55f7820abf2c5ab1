"""Every family of the zoo, cut in every number of stages, against the model in one piece."""

from __future__ import annotations

import copy
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.splitting.outlining import make_outline, prove
from daskinfer.models.splitting.skeleton import Skeleton, owned_names
from daskinfer.models.splitting.standins import fake_weights, make_blank, replace_state, state_names
from daskinfer.models.splitting.structure import flatten
from daskinfer.spec.outline import InputArray, Outline
from daskinfer.testing.models.modeltable import add_sharing, describe_case, outline_of, read_rows, without_weights
from daskinfer.testing.models.zoo import ZOO, ZooCase, make_inputs

SHAPES = ((3, 12), (5, 20))
# One with shared layers; the others fill rows up to windows, so that no size follows from the rows' length.
UNCUT = ("albert", "longformer", "led", "longt5")
# Close relatives of the others, or slow to trace: their turn comes with the slower tests.
LATE = frozenset(
    [
        "bamba",
        "clip",
        "convnext",
        "detr",
        "falcon-h1",
        "falcon-mamba",
        "gemma3n",
        "granite-hybrid",
        "ibert",
        "jamba",
        "led",
        "longt5",
        "mamba",
        "mistral",
        "mixtral",
        "nemotron-h",
        "phi3",
        "qwen3",
        "qwen3-next",
        "recurrentgemma",
        "resnet",
        "roberta",
        "segformer",
        "timesfm",
        "whisper",
        "zamba2",
    ]
)
TABLE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def cut(model: nn.Module, outline: Outline, starts: list[int]) -> list[Skeleton]:
    """Stages that hold nothing but their own weights."""
    parts = []
    for first, last in pairwise([*starts, len(outline.layers)]):
        part = copy.deepcopy(model)
        owned = set(owned_names(part, outline, first, last))
        replace_state(part, [name for name in state_names(part) if name not in owned], make_blank)
        parts.append(Skeleton(part, outline, first, last))
    return parts


def run(parts: list[Skeleton], inputs: dict[str, Tensor]) -> list[Tensor]:
    received: tuple[Tensor, ...] = ()
    with torch.inference_mode():
        for part in parts:
            received = part.run(inputs, received)
    return flatten(received)[0]


def test_the_late_ones_are_of_the_zoo() -> None:
    assert {case.name for case in ZOO} >= LATE


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.late] * (case.name in LATE)) for case in ZOO]
)
def test_stages_equal_the_whole_bit_for_bit_and_the_table_says_so(case: ZooCase) -> None:
    torch.set_num_threads(1)
    model, inputs = case.make()
    outline = add_sharing(model, outline_of(model, inputs))
    layers = len(outline.layers)
    assert (case.name in UNCUT) == (layers == 1), outline.uncut
    for stages in range(1, min(4, layers) + 1):
        parts = cut(model, outline, [layers * stage // stages for stage in range(stages)])
        for seed, shape in enumerate(SHAPES):
            batch = make_inputs(case, *shape, seed)
            with torch.inference_mode():
                whole = flatten(model(**batch))[0]
            assert not any(torch.isnan(value).any() for value in whole)
            staged = run(parts, batch)
            assert len(staged) == len(whole)
            assert all(map(torch.equal, staged, whole)), f"{stages} stages, rows and length {shape}"
    assert read_rows(TABLE.read_text())[ZOO.index(case)] == describe_case(case, model, outline), "say: make models"


def find(name: str) -> tuple[nn.Module, tuple[InputArray, ...]]:
    return next(case for case in ZOO if case.name == name).make()


def test_a_model_with_shared_layers_says_why_it_has_no_cut() -> None:
    outline = outline_of(*find("albert"))
    assert outline.uncut == "it has no list of layers with weights of their own"
    assert [layer.name for layer in outline.layers] == ["AlbertModel"]


class Repeating(nn.Module):
    """Runs its layers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, *self.layers):
            x = torch.tanh(layer(x))
        return x


class Forgetful(Repeating):
    """Keeps what its first layer returned where no tracing sees it, and adds it at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kept = None
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if kept is None:
                kept = x.numpy().copy() if not isinstance(x, torch._subclasses.FakeTensor) else None
        return x if kept is None else x + torch.from_numpy(kept)


class Deciding(Repeating):
    """Goes another way when a value is large."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        if x.abs().max() > 1e9:
            return x
        return torch.as_tensor(self.layers[2](torch.tanh(self.layers[1](x))))


VECTOR = (InputArray(name="x", dtype="float32", shape=(4,)),)


def test_layers_that_run_twice_cannot_be_cut() -> None:
    assert "layers.0 runs more than once" in str(outline_of(Repeating(), VECTOR).uncut)


def test_a_cut_that_tracing_gets_wrong_is_caught_by_the_proof() -> None:
    outline = outline_of(Forgetful(), VECTOR)
    assert outline.uncut == "its output changes when it is cut"
    assert len(outline.layers) == 1


def test_what_control_flow_looks_at_crosses_every_later_cut() -> None:
    model = Deciding()
    outline = outline_of(model, VECTOR)
    assert [[item.event for item in layer.cut] for layer in outline.layers] == [[], [0], [0, 1]]
    x = torch.randn(5, 4)
    assert torch.equal(run(cut(model, outline, [0, 1, 2]), {"x": x})[0], model(x))


def test_the_proof_fails_where_a_carried_tensor_is_left_out() -> None:
    model, inputs = find("unet")
    outline = outline_of(model, inputs)
    layers = list(outline.layers)
    assert len(layers[3].cut) > 1
    layers[3] = layers[3].model_copy(update={"cut": layers[3].cut[1:]})
    assert prove(without_weights(model), outline.model_copy(update={"layers": tuple(layers)})) is not None


def test_a_stage_never_runs_what_it_does_not_own() -> None:
    """Weights of others are NaN: had any of them been used, it would be seen."""
    model, inputs = find("llama-tied")
    outline = outline_of(model, inputs)
    first, last = cut(model, outline, [0, 2])
    names = {name for name in state_names(model) if torch.isnan(first.model.get_parameter(name)).any()}
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"2", "3"}
    assert not torch.isnan(last.model.get_parameter("lm_head.weight")).any()
    assert not torch.isnan(first.model.get_parameter("model.embed_tokens.weight")).any()


def test_another_path_than_the_outline_says_is_an_error() -> None:
    model, inputs = find("own")
    outline = outline_of(model, inputs)
    events = list(outline.events)
    events[1], events[2] = events[2], events[1]
    batch = make_inputs(next(case for case in ZOO if case.name == "own"), 2, 4, 0)
    with pytest.raises(RuntimeError, match="where its outline says otherwise"):
        run(cut(model, outline.model_copy(update={"events": tuple(events)}), [0, 2]), batch)


class Overwriting(Repeating):
    """Changes what its layers return where it lies: once outside of them, once inside the next one."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x.clone())
        first *= 2
        second = self.layers[1](first)
        return torch.as_tensor(self.layers[2](torch.tanh(second)) + first)


def test_what_is_changed_in_place_is_changed_once() -> None:
    model = Overwriting()
    outline = outline_of(model, VECTOR)
    assert outline.uncut is None
    assert [(event.written, event.repeated) for event in outline.events] == [((0,), (0,)), ((), ()), ((), ())]
    x = torch.randn(5, 4)
    for starts in ([0, 1, 2], [0, 2], [0, 1]):
        assert torch.equal(run(cut(model, outline, starts), {"x": x})[0], model(x))
    unmarked = tuple(event.model_copy(update={"written": (), "repeated": ()}) for event in outline.events)
    assert prove(without_weights(model), outline.model_copy(update={"events": unmarked})) is not None


class Windowed(Repeating):
    """Fills rows up to a multiple of a window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.words = nn.Embedding(8, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        x = self.words(nn.functional.pad(input_ids, (0, -length % self.window)))
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return torch.as_tensor(x[:, :length])


@pytest.mark.parametrize(("window", "reason"), [(4, "does not follow"), (64, "change where rows are long")])
def test_a_window_leaves_a_model_whole(window: int, reason: str) -> None:
    model = Windowed(window)
    ids = (InputArray(name="input_ids", dtype="int64", shape=(None,), bound=8),)
    outline = outline_of(model, ids)
    assert reason in str(outline.uncut)
    batch = {"input_ids": torch.randint(0, 8, (3, 130))}
    assert torch.equal(run(cut(model, outline, [0]), batch)[0], model(**batch))


class Choosing(Repeating):
    """Takes another path for another number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: 2 + len(x) % 2]:
            x = torch.tanh(layer(x))
        return x


def test_a_path_that_follows_the_input_leaves_a_model_whole() -> None:
    outline = outline_of(Choosing(), VECTOR)
    assert outline.uncut == "its forward takes another path for other inputs"
    assert outline.layers[0].units == ("layers.0", "layers.1", "layers.2")


@lru_cache
def count_up(size: int) -> Tensor:
    return torch.arange(float(size))


class Remembering(Repeating):
    """Keeps what it has computed, in a function's cache and on itself."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones(4)
            self.register_buffer("noted", torch.ones(4), persistent=False)
        for layer in self.layers:
            x = torch.tanh(layer(x) + count_up(4) + self.kept)
        return x


def test_nothing_of_a_trace_stays_with_the_model() -> None:
    model = without_weights(Remembering())
    assert make_outline(model, VECTOR, task="forward", dtype="float32").uncut is None
    fresh = without_weights(Remembering())
    with fake_weights(fresh) as mode, mode:
        fresh(x=mode.from_tensor(torch.ones(2, 4)))
    assert vars(fresh).get("kept") is None
    assert not dict(fresh.named_buffers())
    assert count_up(4).tolist() == [0, 1, 2, 3]


class Listing(nn.Linear):
    """Returns an object that cannot be passed on."""

    def forward(self, x: Tensor) -> Any:
        return object()


class Passing(nn.Module):
    """Its layer hands an object to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Listing(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_a_layer_that_returns_no_tensor_leaves_a_model_whole() -> None:
    model = Passing()
    outline = outline_of(model, VECTOR)
    assert outline.uncut == "first returns a object"
    x = torch.randn(5, 4)
    assert torch.equal(run(cut(model, outline, [0]), {"x": x})[0], model(x))


def test_outputs_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="Listing: a object"):
        outline_of(Listing(4, 4), VECTOR)


def test_sizes_in_an_outline_are_those_of_any_batch() -> None:
    model, inputs = find("t5")
    outline = outline_of(model, inputs)
    first, second = cut(model, outline, [0, 6])
    for rows, length in ((1, 7), (6, 31)):
        batch = make_inputs(next(case for case in ZOO if case.name == "t5"), rows, length, 3)
        with torch.inference_mode():
            carried = first.run(batch, ())
        assert [tuple(tensor.shape) for tensor in carried] == [
            item.tensor.shape(rows, length) for item in outline.layers[6].cut
        ]
        assert len(run([first, second], batch)) == len(outline.outputs)


class Narrow(nn.Sequential):
    """Takes four numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 4))


def test_a_model_that_does_not_take_such_inputs_is_refused() -> None:
    wide = (InputArray(name="input", dtype="float32", shape=(5,)),)
    with pytest.raises(CheckpointError, match=r"fails on inputs such as it would get \(input float32\[5\]\)"):
        outline_of(Narrow(), wide)


def test_pixels_come_in_the_models_precision() -> None:
    model, inputs = find("convnext")
    outline = make_outline(without_weights(model.to(torch.bfloat16)), inputs, task="forward", dtype="bfloat16")
    assert outline.uncut is None
    assert {item.tensor.dtype for layer in outline.layers for item in layer.cut} == {"bfloat16"}
