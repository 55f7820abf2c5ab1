"""Models whose rows depend on more than themselves, one for each way, and what is done about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from daskinfer.errors import CheckpointError
from daskinfer.models.module_state import ModuleState, reset_before
from daskinfer.models.proofs import row_proof
from daskinfer.models.proofs.probe_lengths import ProbeLengths, choose_lengths
from daskinfer.models.proofs.row_proof import TOLERANCE, prove_sharing
from daskinfer.models.proofs.score_proof import prove_sight
from daskinfer.models.splitting.outlining import make_outline
from daskinfer.models.tasks.score import CausalScore, MaskedScore
from daskinfer.models.tasks.textmodel import TextInputs
from daskinfer.spec.outline import InputArray, Outline, Sharing
from daskinfer.testing.models.modeltable import without_weights
from daskinfer.testing.models.zoo import make_model

WIDTH = 8
TEXT = (
    InputArray(name="input_ids", dtype="int64", shape=(None,), bound=32),
    InputArray(name="attention_mask", dtype="int64", shape=(None,), bound=2),
)
VECTOR = (InputArray(name="features", dtype="float32", shape=(WIDTH,)),)
LENGTHS = ProbeLengths(7, 12, 25)


class Bag(nn.Module):
    """One vector a text: the mean over its tokens, which is what a row alone gives. Subclasses spoil it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        hidden = self.spoil(torch.tanh(self.first(self.embedding(input_ids))) * mask, mask)
        return hidden.sum(1) / mask.sum(1)

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden


class PaddingCounts(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden + 0.01 * hidden.shape[1]


class NeighboursCount(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden - hidden.mean(0, keepdim=True) if len(hidden) > 1 else hidden


class OrderCounts(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden + 0.01 * torch.arange(len(hidden))[:, None, None]


class RemembersShortRows(Bag):
    """As BigBird: what it did for a short microbatch it does for all later ones."""

    has_been_short = False

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        self.has_been_short |= hidden.shape[1] < 8
        return hidden if self.has_been_short else 2 * hidden


class RemembersInABuffer(Bag):
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(WIDTH), persistent=False)

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        before, self.last = self.last, hidden.mean((0, 1)).detach()
        return hidden + before


class ReplacesAPart(Bag):
    """As BigBird's layers: another part takes over the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: nn.Module = nn.Identity()

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.scale(hidden)
        self.scale = nn.Tanh()
        return hidden


class HooksItself(Bag):
    """As transformers, which puts hooks on at the first forward and notes it in an attribute."""

    is_hooked = False

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if not self.is_hooked:
            self.is_hooked = True
            self.first.register_forward_hook(lambda module, args, output: 2 * output)
        return hidden


_everywhere: list[int] = []


class RemembersOutside(Bag):
    """Keeps its memory where no reset finds it."""

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        _everywhere.append(1)
        return hidden * (1 + 0.1 * (len(_everywhere) % 7))


class LeftInTraining(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.dropout(hidden, 0.1, training=True)


class DrawsWithNumpy(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden * float(np.random.rand())


class LongRowsCount(Bag):
    """As a rope kind whose frequencies change where the longest row is beyond a limit."""

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden * (2 if hidden.shape[1] > 32 else 1)


class LongRowsGrow(Bag):
    """As one whose frequencies follow the longest row from a limit on."""

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden * max(1.0, hidden.shape[1] / 32)


class PicksByThePadding(Bag):
    """As sparse attention that takes another one of equally good tokens where a long row is padded by a few."""

    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(1, keepdim=True)
        return hidden * torch.where((count > 20) & (count < hidden.shape[1]), 2.0, 1.0)


class IsNotANumber(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden * float("nan")


class Rounds(Bag):
    def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden * (1 + 1e-6 * hidden.shape[1])


def outline_of(model: nn.Module, inputs: tuple[InputArray, ...] = TEXT) -> tuple[nn.Module, Outline]:
    empty = without_weights(model.eval())
    return empty, make_outline(empty, inputs, task="forward", dtype="float32")


LIMIT = ProbeLengths(7, 12, 25, beyond=40, limits=(32,))


@pytest.mark.parametrize(
    ("kind", "lengths", "wanted"),
    [
        (Bag, LENGTHS, Sharing()),
        (Rounds, LENGTHS, Sharing()),
        (PaddingCounts, LENGTHS, Sharing(rows="same length")),
        (PicksByThePadding, LENGTHS, Sharing(rows="same length")),
        (NeighboursCount, LENGTHS, Sharing(rows="none")),
        (OrderCounts, LENGTHS, Sharing(rows="none")),
        (RemembersShortRows, LENGTHS, Sharing(rows="same length", reset=True)),
        (RemembersInABuffer, LENGTHS, Sharing(reset=True)),
        (ReplacesAPart, LENGTHS, Sharing(reset=True)),
        (HooksItself, LENGTHS, Sharing(reset=True)),
        (IsNotANumber, LENGTHS, Sharing(rows="none", reset=True)),
        (LongRowsCount, LENGTHS, Sharing()),
        (LongRowsCount, LIMIT, Sharing(beyond=32)),
        (LongRowsGrow, LIMIT, Sharing(beyond=32, rows="same length")),
    ],
)
def test_rows_share_microbatches_as_far_as_they_leave_each_other_alone(
    kind: type[Bag], lengths: ProbeLengths, wanted: Sharing
) -> None:
    found = prove_sharing(*outline_of(kind()), lengths)
    assert found.model_copy(update={"reason": None}) == wanted
    assert (found.reason is None) == wanted.is_free
    assert wanted.is_free or "changes a row's result by" in found.describe() or kind is IsNotANumber


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (LeftInTraining, "its result is random: the same rows, computed twice, differ by 0"),
        (DrawsWithNumpy, "its result is random"),
        (RemembersOutside, "hangs on more than the row|is random"),
    ],
)
def test_a_model_whose_rows_nothing_makes_independent_is_refused(kind: type[Bag], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        prove_sharing(*outline_of(kind()), LENGTHS)


def test_random_generators_are_left_as_they_were() -> None:
    tried = outline_of(Bag())
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = float(torch.rand(())), float(np.random.rand())
    torch.manual_seed(5)
    np.random.seed(5)
    prove_sharing(*tried, LENGTHS)
    assert (float(torch.rand(())), float(np.random.rand())) == wanted


def test_rows_without_a_length_are_compared_too() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, features: Tensor) -> Tensor:
            out = torch.as_tensor(self.linear(features))
            return out - out.mean(0) if len(out) > 1 else out

    found = prove_sharing(*outline_of(Mean(), VECTOR), choose_lengths({}, 1))
    assert (found.rows, found.reset) == ("none", False)


@pytest.mark.parametrize("model", [Bag, RemembersShortRows])
def test_a_large_model_is_proved_one_unit_at_a_time(
    model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prove_sharing(*outline_of(model()), LENGTHS)
    monkeypatch.setattr(row_proof, "_WHOLE_BYTES", 0)
    assert prove_sharing(*outline_of(model()), LENGTHS) == whole


def test_a_model_that_cannot_compute_a_row_alone_is_refused_by_name() -> None:
    class Pairs(Bag):
        def spoil(self, hidden: Tensor, mask: Tensor) -> Tensor:
            if len(hidden) < 2:
                raise ValueError("one row is no pair")
            return hidden

    with pytest.raises(CheckpointError, match=r"rows of 7, 12, 25 tokens one by one and together: .*no pair"):
        prove_sharing(*outline_of(Pairs()), LENGTHS)


class SavesItsMask(nn.Module):
    """As MiniMax, whose decays are saved with the weights: what a token sees is a buffer that the class computes."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, WIDTH)
        self.head = nn.Linear(WIDTH, 96)
        self.register_buffer("mask", torch.ones(64, 64).tril())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> CausalLMOutput:
        length = input_ids.shape[1]
        hidden = self.mask[:length, :length] @ self.embedding(input_ids)
        return CausalLMOutput(logits=self.head(hidden))


@pytest.mark.parametrize("whole", [1 << 30, 0])
def test_a_saved_buffer_that_the_class_computes_keeps_its_values(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_proof, "_WHOLE_BYTES", whole)
    arrays = tuple(array.model_copy(update={"bound": 2 if "mask" in array.name else 96}) for array in TEXT)
    empty = SavesItsMask().eval()
    empty.embedding.to("meta"), empty.head.to("meta")
    module = CausalScore(empty, (), TextInputs(arrays, tuple(array.name for array in arrays)), None)
    prove_sight(module, make_outline(module, module.inputs, task="score", dtype="float32"), 32)


def test_a_reset_module_computes_as_a_fresh_one() -> None:
    model = RemembersInABuffer().eval()
    state = ModuleState(model)
    batch = {"input_ids": torch.ones(2, 9, dtype=torch.int64), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    with torch.inference_mode():
        forward = reset_before(model.__call__, state)
        first = forward(**batch)
        vars(model)["extra"] = 1
        assert torch.equal(forward(**batch), first)
        assert not hasattr(model, "extra")
        assert not torch.equal(model(**batch), first)


PHI3 = {
    "model_type": "phi3",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 32,
    "rope_scaling": {"type": "longrope", "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
}


@pytest.mark.parametrize(("max_length", "beyond"), [(64, 32), (32, 0)])
def test_rows_beyond_the_original_length_of_a_rope_are_kept_apart(max_length: int, beyond: int) -> None:
    inputs = tuple(array.model_copy(update={"bound": 96}) if array.bound == 32 else array for array in TEXT)
    lengths = choose_lengths(PHI3, max_length)
    found = prove_sharing(*outline_of(make_model("Phi3Model", PHI3), inputs), lengths)
    assert (found.rows, found.beyond, found.reset) == ("any", beyond, False)


BERT = {
    "model_type": "bert",
    "vocab_size": 96,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("architecture", "is_decoder", "message"),
    [
        ("BertLMHeadModel", False, "sees the tokens that it is to predict"),
        ("BertLMHeadModel", True, None),
        ("BertForMaskedLM", False, None),
        ("BertForMaskedLM", True, "predicts a token only from those before it"),
    ],
)
def test_what_a_scoring_model_sees_is_tried(architecture: str, is_decoder: bool, message: str | None) -> None:
    model = make_model(architecture, BERT | {"is_decoder": is_decoder})
    arrays = tuple(array.model_copy(update={"bound": 2 if "mask" in array.name else 96}) for array in TEXT)
    texts = TextInputs(arrays, tuple(array.name for array in arrays))
    is_causal = architecture == "BertLMHeadModel"
    module = CausalScore(model, (), texts, None) if is_causal else MaskedScore(model, (), texts)
    empty, outline = outline_of(module, module.inputs)
    assert isinstance(empty, CausalScore | MaskedScore)
    if message is None:
        prove_sight(empty, outline, 32)
        return
    with pytest.raises(CheckpointError, match=message):
        prove_sight(empty, outline, 32)


@pytest.mark.parametrize(
    ("config", "max_length", "wanted"),
    [
        ({"max_position_embeddings": 512}, 256, ProbeLengths(7, 12, 25)),
        ({"max_position_embeddings": 512}, 10, ProbeLengths(7, 10, 10)),
        ({"sliding_window": 4096}, 256, ProbeLengths(7, 12, 25)),
        ({"text_config": {"sliding_window": 64}}, 256, ProbeLengths(7, 12, 25, 72)),
        ({"attention_window": [16, 96]}, 256, ProbeLengths(7, 12, 25, 108)),
        ({"block_size": 8}, 4096, ProbeLengths(7, 12, 25, 144)),
        ({"block_size": 64}, 256, ProbeLengths(7, 12, 25, 256)),
        ({"index_topk": 4}, 64, ProbeLengths(7, 12, 25, 64)),
        ({"original_max_position_embeddings": 64}, 65, ProbeLengths(7, 12, 25, 65, (64,))),
        ({"task_specific_params": {"window": 30}}, 256, ProbeLengths(7, 12, 25)),
    ],
)
def test_lengths_pass_what_the_configuration_names(
    config: dict[str, Any], max_length: int, wanted: ProbeLengths
) -> None:
    assert choose_lengths(config, max_length) == wanted


def test_what_differs_is_measured_against_the_largest_number() -> None:
    def differ(some: Sequence[float], others: Sequence[float]) -> float:
        return row_proof.find_difference([torch.tensor(some)], [torch.tensor(others)])

    assert differ([1.0, -4.0], [1.0, -4.0]) == 0
    assert differ([1.0, -4.0], [2.0, -4.0]) == 0.25
    assert differ([float("nan"), 1.0], [float("nan"), 1.0]) == 0
    assert differ([float("nan"), 1.0], [0.0, 1.0]) == float("inf")
    assert differ([float("-inf"), 1.0], [float("-inf"), 1.0]) == 0
    assert differ([1e-9], [0.0]) == float("inf")
    assert TOLERANCE < 1e-3
