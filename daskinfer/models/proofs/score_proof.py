"""Whether a model that scores texts sees what it may: those tokens before the one to predict, or all others."""

from __future__ import annotations

import torch

from daskinfer.errors import CheckpointError
from daskinfer.models.module_state import ModuleState
from daskinfer.models.proofs.probe_rows import Row, collate, make_row
from daskinfer.models.proofs.row_proof import (
    TOLERANCE,
    explain_failure,
    find_difference,
    proof_settings,
    with_random_weights,
)
from daskinfer.models.tasks.score import ScoreModule
from daskinfer.spec.outline import Outline

_LENGTH = 12


def prove_sight(module: ScoreModule, outline: Outline, max_length: int, pad: int = 0) -> None:
    """Change a text's last token and compare the logits of those before it.

    Parameters
    ----------
    module
        The task's module in float32, its parameters on the meta device.
    outline
        What was found of it.
    max_length
        Longest row of the job in tokens.
    pad
        Id that no text has.

    Raises
    ------
    CheckpointError
        Where a causal model sees what it is to predict, or a masked one nothing of what follows, or it cannot be run.

    Examples
    --------
    >>> from daskinfer.models.splitting.outlining import make_outline
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("score", "GPT2LMHeadModel"), "float32")
    >>> prove_sight(module, make_outline(module, module.inputs, task="score", dtype="float32"), max_length=64)
    """
    length = min(_LENGTH, max_length)
    if length < 2:
        return
    row = make_row(outline.inputs, length, 0, pad)
    ids = row.arrays["input_ids"].clone()
    bound = next(array.bound or 2 for array in outline.inputs if array.name == "input_ids")
    ids[-1] = next((number for number in range(bound - 1, -1, -1) if number not in (pad, int(ids[-1]))), 0)
    other = Row(length, {**row.arrays, "input_ids": ids})
    before = []
    with (
        explain_failure(outline, {length}),
        proof_settings(),
        torch.inference_mode(),
        module.only_logits(),
        with_random_weights(module, outline) as prepare,
    ):
        state, run = ModuleState(module), prepare(len(outline.layers))
        for each in (row, other):
            state.restore()
            torch.manual_seed(0)
            before.append(run(collate([each], outline.inputs, pad))[0][:, : length - 1])
    difference = find_difference(before[:1], before[1:])
    if module.is_causal and difference > TOLERANCE:
        raise CheckpointError(
            f"{outline.architecture} cannot score a text: its logits change by {difference:.1g} of their size when a "
            "later token changes, so it sees the tokens that it is to predict",
            hint="Use a decoder: some models become one when config.json sets is_decoder to true. Or its ForMaskedLM checkpoint, where "
            "there is one.",
        )
    if not module.is_causal and difference <= TOLERANCE:
        raise CheckpointError(
            f"{outline.architecture} cannot score a text as a masked model: its logits do not change when a later token "
            "changes, so it predicts a token only from those before it",
            hint="Use its causal checkpoint, or one that was trained to look at both sides of a token.",
        )
