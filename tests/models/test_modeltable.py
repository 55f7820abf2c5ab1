"""The table of docs/models.md; that its rows are true is tested where the families are cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from daskinfer.models.architecture import stored_prefix
from daskinfer.models.entry import find_entry
from daskinfer.models.request import TaskRequest
from daskinfer.models.splitting.structure import flatten
from daskinfer.models.tasks.forward import make_forward
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.testing.models.modeltable import fill_page, read_rows
from daskinfer.testing.models.zoo import ZOO, ZooCase, make_inputs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()


def test_the_table_has_a_row_for_each_family_and_no_other() -> None:
    rows = read_rows(PAGE)
    assert [row.split(" | ")[0] for row in rows] == [f"| {case.family}" for case in ZOO]
    assert fill_page(PAGE, rows) == PAGE
    assert fill_page(PAGE, ["| new |"]) != PAGE


def claims_forward(case: ZooCase) -> bool:
    return f"`forward` ({case.architecture})" in read_rows(PAGE)[ZOO.index(case)]


@pytest.mark.parametrize("case", [case for case in ZOO if claims_forward(case)], ids=lambda case: case.name)
def test_forward_gives_the_models_own_outputs(case: ZooCase) -> None:
    entry = None if case.config else find_entry(f"daskinfer.testing.models.ownmodels:{case.architecture}")
    files = {"config.json": json.dumps(case.config).encode()} if case.config else {}
    module = make_forward(
        TaskRequest("forward", ModelOptions(), case.architecture, files, entry, case.inputs), "float32"
    )
    plain, _ = case.make()
    stored = {name.removeprefix(stored_prefix(plain)): tensor for name, tensor in plain.state_dict().items()}
    module.load_state_dict({name: stored[module.stored_name(name)] for name in module.state_dict()}, assign=True)
    inputs = make_inputs(case, 3, 7, 1)
    with torch.inference_mode():
        outputs: list[Tensor] = list(module(**inputs).values())
        wanted, _ = flatten(plain(**inputs))
    assert outputs
    assert all(any(torch.equal(output, value) for value in wanted) for output in outputs)
