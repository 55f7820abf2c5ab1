"""The table in docs/models.md: what each family of the zoo does and how it is cut, from its outline.

``python -m daskinfer.testing.models.modeltable --write docs/models.md`` puts it between the page's two marks.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig

from daskinfer.models.architecture import stored_prefix
from daskinfer.models.preprocessing.textconfig import pad_id
from daskinfer.models.proofs.probe_lengths import choose_lengths
from daskinfer.models.proofs.row_proof import prove_sharing
from daskinfer.models.splitting.outlining import make_outline
from daskinfer.models.splitting.standins import replace_state, state_names
from daskinfer.models.tasks.kinds import find_problem
from daskinfer.spec.outline import Dim, InputArray, Outline, TensorSpec
from daskinfer.testing.models.taskcases import tested_tasks
from daskinfer.testing.models.zoo import ZOO, ZooCase

BEGIN, END = "<!-- table: make models -->\n", "<!-- end of the table -->\n"
HEAD = (
    "| family | tasks, and the classes that they are tested on | cut before every | what crosses a cut | limits |",
    "|---|---|---|---|---|",
)
_ROWS: Dim = (0, 1, 0, 0)
# Singular and plural of a tensor with rows, by its number of dimensions.
_WITH_ROWS = {
    2: ("one vector a row", "vectors a row"),
    3: ("hidden states", "sets of hidden states"),
    4: ("one feature map", "feature maps"),
}
_WITHOUT_ROWS = ("one position bias for all rows", "position biases for all rows")


def without_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its parameters on the meta device.

    Examples
    --------
    >>> from daskinfer.testing.models.ownmodels import make_own
    >>> {parameter.device.type for parameter in without_weights(make_own()).parameters()}
    {'meta'}
    """
    empty = copy.deepcopy(model)
    replace_state(empty, state_names(empty), lambda name, tensor: tensor.to("meta"))
    return empty


def outline_of(model: nn.Module, inputs: tuple[InputArray, ...]) -> Outline:
    """Return the outline of a model that has weights, found without them."""
    return make_outline(without_weights(model), inputs, task="forward", dtype="float32")


def add_sharing(model: nn.Module, outline: Outline) -> Outline:
    """Return an outline with what is found of rows that share a microbatch, up to 64 tokens."""
    settings = getattr(model, "config", None)
    config = settings.to_dict() if isinstance(settings, PreTrainedConfig) else {}
    lengths = choose_lengths(config, 64)
    sharing = prove_sharing(without_weights(model), outline, lengths, pad_id(config))
    return outline.model_copy(update={"sharing": sharing})


def describe_case(case: ZooCase, model: nn.Module, outline: Outline) -> str:
    """Return a family's row of the table."""
    outputs, left_out = _sort_outputs(outline)
    tasks = [f"`{task}` ({', '.join(names)})" for task, names in tested_tasks(case).items()]
    if outputs:
        tasks.append(f"`forward` ({case.architecture})")
    limits = [f"cannot be cut: {outline.uncut}"] if outline.uncut else []
    if outline.sharing is not None and not outline.sharing.is_free:
        limits.append(f"a microbatch holds {outline.sharing.describe()}")
    if left_out:
        limits.append(f"`forward` leaves out {', '.join(left_out)}")
    names = [layer.name.removeprefix(stored_prefix(model)) for layer in outline.layers]
    cuts = "" if outline.uncut else ", ".join(f"`{name}`" for name in dict.fromkeys(map(_hide_numbers, names)))
    return f"| {case.family} | {', '.join(tasks)} | {cuts} | {_describe_crossing(outline)} | {'; '.join(limits)} |"


def fill_page(page: str, rows: Iterable[str]) -> str:
    """Return a page with these rows in its table.

    Examples
    --------
    >>> page = fill_page(f"before {BEGIN}{END} after", ["| BERT |"])
    >>> read_rows(page)
    ['| BERT |']
    """
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "".join(f"{line}\n" for line in (*HEAD, *rows)) + END + after


def read_rows(page: str) -> list[str]:
    """Return the rows of a page's table.

    Examples
    --------
    >>> page = fill_page(f"before {BEGIN}{END} after", ["| BERT |", "| Llama |"])
    >>> read_rows(page)
    ['| BERT |', '| Llama |']
    """
    table = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    return table[len(HEAD) :]


def _hide_numbers(name: str) -> str:
    return re.sub(r"\b\d+\b", "N", name)


def _sort_outputs(outline: Outline) -> tuple[list[str], list[str]]:
    """Return the outputs that task forward writes of rows of one length, and those that it leaves out with the reason."""
    written, left_out = [], []
    for name, spec in outline.outputs.items():
        dims = tuple((a + c, b + d, 0, 0) for a, b, c, d in spec.dims)
        problem = find_problem(TensorSpec(dtype=spec.dtype, dims=dims))
        if problem is None:
            written.append(name)
        else:
            left_out.append(f"{name}, which {problem}")
    return written, left_out


def _describe_crossing(outline: Outline) -> str:
    cuts = [Counter(_name_tensor(item.tensor) for item in layer.cut) for layer in outline.layers[1:]]
    found = []
    for kind in dict.fromkeys(kind for cut in cuts for kind in cut):
        counts = [cut[kind] for cut in cuts]
        low, high = min(counts), max(counts)
        if high == 1:
            found.append(kind[0] if low else f"{kind[0]} at some cuts")
        else:
            number = f"{low} to {high}" if 0 < low < high else f"up to {high}" if low < high else str(high)
            found.append(f"{number} {kind[1]}")
    return ", ".join(found)


def _name_tensor(spec: TensorSpec) -> tuple[str, str]:
    return _WITH_ROWS[len(spec.dims)] if _ROWS in spec.dims else _WITHOUT_ROWS


def _main(path: Path) -> None:
    rows = []
    for case in ZOO:
        model, inputs = case.make()
        rows.append(describe_case(case, model, add_sharing(model, outline_of(model, inputs))))
    path.write_text(fill_page(path.read_text(), rows))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--write", target]:
            _main(Path(target))
        case _:
            sys.exit("usage: python -m daskinfer.testing.models.modeltable --write PAGE")
