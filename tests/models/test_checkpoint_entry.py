"""Modules that a user's own function builds, as checkpoints."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from daskinfer.errors import CheckpointError
from daskinfer.ids import make_nonce, sha256_of
from daskinfer.models.checkpoints.checkpoint import inspect_entry
from daskinfer.models.entry import confirm_entry, digest_code, find_entry, load_entry
from daskinfer.spec.snapshot import EntryPoint

ENTRY = """
import torch
from torch import nn

class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.blocks[1].weight = self.blocks[0].weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("steps", torch.arange(3))

def build():
    torch.manual_seed(3)
    return Twins()

def stack():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))

def mixed():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    module.scalar = nn.Parameter(torch.tensor(2.0, dtype=torch.float16))
    module.empty = nn.Parameter(torch.zeros(0, 4))
    module.register_buffer("count", torch.tensor(3))
    module.register_buffer("flags", torch.tensor([True, False]))
    module.register_buffer("narrow", torch.ones(3, dtype=torch.bfloat16))
    module.register_buffer("wide", torch.ones(3, dtype=torch.float64))
    return module.requires_grad_(False)

def nothing():
    return None

def broken():
    raise RuntimeError("out of order")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of a user's own."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_module_of_ones_own_is_published_with_its_own_weights(code: str) -> None:
    found = inspect_entry(f"{code}:build")
    assert (found.architecture, found.dtype, found.files) == ("Twins", "float32", {})
    assert found.entry == find_entry(f"{code}:build")
    assert [group.name for group in found.groups] == ["model", "blocks.0", "blocks.1"]
    assert found.tied == {"blocks.1.weight": "blocks.0.weight"}
    published = {name: value for group in found.groups for name, value in load(group.blob()).items()}
    wanted = load_entry(find_entry(f"{code}:build"), weights=True).state_dict()
    assert published.keys() == wanted.keys() - {"blocks.1.weight"}
    assert all(torch.equal(value, wanted[name]) for name, value in published.items())


def test_a_sequential_takes_its_weights_from_a_directory(code: str, tmp_path: Path) -> None:
    weights = {name: torch.randn_like(value) for name, value in _state(code, "stack").items()}
    save_file(weights, tmp_path / "anything.safetensors")
    found = inspect_entry(f"{code}:stack", tmp_path)
    assert found.architecture == "Sequential"
    published = {name: value for group in found.groups for name, value in load(group.blob()).items()}
    assert all(torch.equal(value, weights[name]) for name, value in published.items())
    assert published.keys() == weights.keys()
    assert inspect_entry(f"{code}:stack", tmp_path, dtype="bfloat16").dtype == "bfloat16"
    del weights["3.bias"]
    save_file(weights, tmp_path / "anything.safetensors")
    with pytest.raises(CheckpointError, match=r"missing tensor 3\.bias"):
        inspect_entry(f"{code}:stack", tmp_path)


def _state(code: str, function: str) -> dict[str, torch.Tensor]:
    return load_entry(find_entry(f"{code}:{function}"), weights=True).state_dict()


def test_an_entry_is_built_without_weights_unless_asked(code: str) -> None:
    model = load_entry(find_entry(f"{code}:stack"))
    assert all(parameter.is_meta for parameter in model.parameters()) and not model.training


def test_changed_code_is_refused(code: str, tmp_path: Path) -> None:
    entry = find_entry(f"{code}:build")
    with (tmp_path / f"{code}.py").open("a") as file:
        file.write("changed = True\n")
    with pytest.raises(CheckpointError, match="its source has changed"):
        load_entry(entry)


def test_comments_and_layout_change_nothing(code: str, tmp_path: Path) -> None:
    place = tmp_path / f"{code}.py"
    before = find_entry(f"{code}:build")
    place.write_text(f"# a comment\n\n{place.read_text()}\n# another\n")
    assert find_entry(f"{code}:build") == before
    assert digest_code(b"a = 1 # one") == digest_code(b"a  =  (1)\n")
    values = (
        b"a = 1",
        b"a = 1.0",
        b"a = True",
        b"a = '1'",
        b"b = 1",
        b"a: int = 1",
        b"a += 1",
        b'"""Docstring."""\na = 1',
    )
    assert len({digest_code(each) for each in values}) == len(values)


def test_an_entry_of_an_earlier_version_is_known_by_its_bytes(code: str, tmp_path: Path) -> None:
    whole = (tmp_path / f"{code}.py").read_bytes()
    confirm_entry(EntryPoint(function=f"{code}:build", source=sha256_of(whole)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "returned a NoneType"),
        ("broken", "failed: RuntimeError: out of order"),
        ("absent", "cannot be imported"),
        ("not a name", "not of the form"),
    ],
)
def test_entries_that_give_no_module_are_refused(code: str, function: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        inspect_entry(f"{code}:{function}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nx = undefined", "2: NameError: name 'undefined' is not defined"),
        ("\n\ndef build()\n", "3: SyntaxError: expected ':'"),
        ("import sys\nsys.exit(3)", "2: SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("place", ["{}", "{}/__init__", "{}/deep"])
def test_a_module_that_cannot_be_imported_is_named_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, place: str
) -> None:
    name = f"unfit{make_nonce()}"
    path = (tmp_path / place.format(name)).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module = ".".join(path.with_suffix("").relative_to(tmp_path).parts).removesuffix(".__init__")
    module = f"{module}.inner" if place.endswith("__init__") else module
    with pytest.raises(
        CheckpointError, match=re.escape(f"model.entry {module}:build cannot be imported: {path}:{message}")
    ):
        inspect_entry(f"{module}:build")


@pytest.mark.parametrize("entry", ["no_such_module_at_all:build", "no_such.module:build", "json", "sys:exit"])
def test_entries_without_source_are_refused(entry: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.entry"):
        find_entry(entry)


def test_scalars_empty_tensors_and_mixed_precisions(tmp_path: Path, code: str) -> None:
    found = inspect_entry(f"{code}:mixed")
    published = {name: value for group in found.groups for name, value in load(group.blob()).items()}
    wanted = load_entry(find_entry(f"{code}:mixed"), weights=True).state_dict()
    assert {name: (value.dtype, value.shape) for name, value in published.items()} == {
        name: (value.dtype, value.shape) for name, value in wanted.items()
    }
    assert all(torch.equal(value, wanted[name]) for name, value in published.items())
