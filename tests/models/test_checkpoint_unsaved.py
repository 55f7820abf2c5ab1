"""What a module of one's own holds beside its saved state has to come out the same at every build."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from daskinfer.errors import CheckpointError
from daskinfer.models.checkpoints.checkpoint import inspect_entry
from daskinfer.models.entry import check_builds, find_entry

SOURCE = """
import functools, os, random, time, weakref
import numpy as np
import torch
from torch import nn

AT_IMPORT = torch.randn(3)
FIXED = torch.linspace(0, 1, 5)

class Held:
    __slots__ = ("inner", "__weakref__")
    def __init__(self, inner):
        self.inner = inner

class Mine(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        return {"y": self.blocks[1](self.blocks[0](self.first(x)))}

def seeded(make):
    def build():
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        model = Mine()
        model.f = make(model)
        return model
    return build

def late():
    torch.manual_seed(0)
    model = Mine()
    model.blocks[1].register_buffer("f", torch.randn(4), persistent=False)
    return model

def derived(model):
    return model.first.weight.detach().clone()

# Refused: the value depends on the draw, the weights, the process or the clock.
attribute = seeded(lambda model: torch.randn(4))
listed = seeded(lambda model: {"a": [1, (torch.randn(4),)]})
array = lambda: Mine(f=np.random.rand(3))
number = lambda: Mine(f=random.random())
drawn = lambda: Mine(f=torch.randn(4))
integers = lambda: Mine(f=torch.randperm(1000))
imported = lambda: Mine(f=AT_IMPORT)
clock = lambda: Mine(f=time.time_ns())
generator = lambda: Mine(f=np.random.default_rng())
slots = lambda: Mine(f=Held(torch.randn(3)))
hidden = lambda: Mine(f=[nn.Linear(4, 4)])
closure = lambda: Mine(f=(lambda secret: lambda x: x + secret)(torch.randn(1)))
partial = lambda: Mine(f=functools.partial(torch.add, torch.randn(1)))
weights = seeded(derived)
reference = seeded(lambda model: [model.first.weight])
device = seeded(lambda model: model.first.weight.device)
uninitialised = seeded(lambda model: torch.empty(4).fill_(1.0))

# Refused: the same at every build of one process.
process = lambda: Mine(f=os.getpid())
folder = lambda: Mine(f=[len(os.getcwd())])
setting = lambda: Mine(f=float(os.environ.get("TINY_SCALE", "1")))
order = lambda: Mine(f=list(set("abcdefghijklmnop")))
hashed = lambda: Mine(f=torch.tensor(hash("one")))

# Fine: constants, seeds of their own, saved state, the same objects again.
def constants():
    own = torch.Generator().manual_seed(7)
    model = Mine(
        a=torch.arange(3), b=FIXED, c=[1, 2.5, "x", None, float("nan"), {"k": torch.ones(2)}], d=nn.functional.relu,
        e=torch.randn(4, generator=own), g=np.random.default_rng(3), h=np.array([1.0, float("nan")]), i=Held([1]),
        j=torch.eye(3).to_sparse(), k=torch.float32, l=lambda x: x + FIXED,
    )
    model.register_buffer("positions", torch.arange(4), persistent=False)
    model.register_buffer("noise", torch.randn(4))
    model.again = model.a
    model.me = [model, model.blocks]
    model.norm = nn.BatchNorm1d(4)
    return model
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"held_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "function",
    [
        *("attribute", "listed", "array", "number", "drawn", "integers", "imported", "clock", "generator", "slots"),
        *("hidden", "closure", "partial", "weights", "reference", "device", "uninitialised", "late"),
    ],
)
def test_a_value_that_is_not_saved_and_comes_out_otherwise_is_refused(code: str, function: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.entry .*: (blocks\.1\.)?f.* is no saved state") as caught:
        inspect_entry(f"{code}:{function}")
    assert "register_buffer" in str(caught.value.hint)


@pytest.mark.parametrize("function", ["drawn", "imported", "hidden", "number"])
def test_what_is_drawn_is_found_without_weights_too(code: str, function: str) -> None:
    check_builds(find_entry(f"{code}:constants"))
    with pytest.raises(CheckpointError, match="is no saved state"):
        check_builds(find_entry(f"{code}:{function}"))


def test_constants_and_saved_state_are_fine_and_no_generator_is_moved(code: str) -> None:
    torch.manual_seed(5)
    wanted = torch.manual_seed(5).get_state()
    check_builds(find_entry(f"{code}:constants"), None)
    assert torch.equal(torch.get_rng_state(), wanted)
    found = inspect_entry(f"{code}:constants")
    assert "noise" in {name for group in found.groups for name, _ in group.tensors}


@pytest.mark.late
@pytest.mark.other_process
@pytest.mark.parametrize("function", ["process", "folder", "setting", "order", "hashed"])
def test_a_value_that_follows_from_the_process_is_refused(
    code: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_SCALE", "3")
    with pytest.raises(CheckpointError, match=r"f.* is no saved state of the module, and differs in another process"):
        inspect_entry(f"{code}:{function}")


@pytest.mark.late
@pytest.mark.other_process
def test_constants_are_the_same_in_another_process(code: str) -> None:
    inspect_entry(f"{code}:constants")
