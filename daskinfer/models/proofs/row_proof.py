"""Which rows may share a microbatch, so that a row's result is that of the row alone.

A model with random weights computes a few rows alone, padded among longer ones, in two orders, and after short and long
microbatches, with another seed of every random generator each time. What changes a row's result beyond rounding is
avoided by how microbatches are formed, or the model is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.module_state import ModuleState
from daskinfer.models.proofs.probe_lengths import ProbeLengths
from daskinfer.models.proofs.probe_rows import Row, collate, make_row, take_row
from daskinfer.models.splitting.skeleton import Skeleton, name_in_snapshot
from daskinfer.models.splitting.standins import random_weights, state_names, whole_random_weights
from daskinfer.models.splitting.structure import flatten
from daskinfer.planning.microbatches import group_rows
from daskinfer.spec.outline import InputArray, Outline, Sharing, TensorSpec

TOLERANCE = 1e-4
"""Largest difference, as a part of the largest number in the result, that is taken for rounding."""

# Models up to this size have all their random weights at once, larger ones those of one unit at a time.
_WHOLE_BYTES = 1 << 30
# Operations that a microbatch of long rows may take; of larger models only the first layers run on them, but always these.
_LONG_FLOPS = 30e9
_LEAST_LAYERS = 4

Run = Callable[[dict[str, Tensor]], list[Tensor]]


def prove_sharing(model: nn.Module, outline: Outline, lengths: ProbeLengths, pad: int = 0) -> Sharing:
    """Return which rows may share a microbatch.

    Parameters
    ----------
    model
        The whole model in float32, its parameters on the meta device, its buffers real.
    outline
        What was found of it.
    lengths
        Lengths of the rows to try, where rows have one.
    pad
        Id that fills short rows.

    Raises
    ------
    CheckpointError
        Where a row's result hangs on more than its row in whatever way it is computed, or cannot be computed.

    Examples
    --------
    >>> from daskinfer.models.proofs.probe_lengths import choose_lengths
    >>> from daskinfer.models.splitting.outlining import make_outline
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("embed")
    >>> module = build_task(request, "float32")
    >>> outline = make_outline(module, module.inputs, task="embed", dtype="float32")
    >>> prove_sharing(module, outline, choose_lengths(request.config, 64)).is_free
    True
    """
    tried = {lengths.short, lengths.middle, lengths.long, lengths.beyond or 0, lengths.longest or 0}
    with explain_failure(outline, tried - {0}):
        return _prove(model, outline, lengths, pad)


@contextmanager
def explain_failure(outline: Outline, tried: Collection[int]) -> Iterator[None]:
    """Turn what a model raises on rows of these lengths into a `CheckpointError`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> with explain_failure(SimpleNamespace(architecture="TestModel", inputs=()), {7}):
    ...     raise RuntimeError("shapes differ")
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: TestModel cannot compute rows one by one and together: RuntimeError: shapes differ
    Lower model.options.max_length where only long rows fail, or wrap the model: model.entry.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        has_length = any(None in array.shape for array in outline.inputs)
        of = f" of {', '.join(map(str, sorted(tried)))} tokens" if has_length else ""
        raise CheckpointError(
            f"{outline.architecture} cannot compute rows{of} one by one and together: {type(error).__name__}: {error}",
            hint="Lower model.options.max_length where only long rows fail, or wrap the model: model.entry.",
        ) from error


def _prove(model: nn.Module, outline: Outline, lengths: ProbeLengths, pad: int) -> Sharing:
    with proof_settings(), torch.inference_mode(), with_random_weights(model, outline) as prepare:
        if lengths.longest is not None and any(None in array.shape for array in outline.inputs):
            row = make_row(outline.inputs, lengths.longest, 0, pad)
            prepare(_count_layers(outline, lengths.longest))(collate([row], outline.inputs, pad))
        experiments = list(_make_experiments(model, outline, lengths, prepare, pad))
        worst = max(each.try_all() for each in experiments)
        if any(each.has_nan for each in experiments):
            return Sharing(rows="none", reset=True, reason="it gives NaN on random weights, so that nothing is proved")
        if worst <= TOLERANCE:
            return Sharing()
        noise = max(each.try_twice() for each in experiments)
        if noise > TOLERANCE:
            raise _refuse(
                outline,
                "its result is random: the same rows, computed twice, "
                f"differ by {noise:.1g} of the result's largest number",
                "Use a model that draws no random numbers, or one whose forward takes them as an input: task forward.",
            )
        for sharing in _candidates(outline, lengths):
            if all(each.try_sharing(sharing) <= TOLERANCE for each in experiments):
                return sharing.model_copy(update={"reason": f"{_name_cause(sharing)} by {worst:.1g} of its size"})
    raise _refuse(
        outline,
        "a row's result hangs on more than the row: alone, with the model's state put back, it still differs by "
        f"{worst:.1g} of the result's largest number",
        "Use a model without memory of its own, or wrap it in a module that has none: model.entry.",
    )


@contextmanager
def proof_settings() -> Iterator[None]:
    """Compute on one core, which is fastest for small rows, and leave the process as it was, its random generators too.

    Examples
    --------
    >>> before = torch.get_num_threads()
    >>> with proof_settings():
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    numbers, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(numbers)
            np.random.set_state(arrays)


@contextmanager
def with_random_weights(model: nn.Module, outline: Outline) -> Iterator[Callable[[int], Run]]:
    """Yield what returns, for a number of layers, the function that runs them on random weights.

    Examples
    --------
    >>> from daskinfer.models.splitting.outlining import make_inputs, make_outline
    >>> from daskinfer.models.tasks.build import build_task
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("embed"), "float32")
    >>> outline = make_outline(module, module.inputs, task="embed", dtype="float32")
    >>> with with_random_weights(module, outline) as prepare, torch.inference_mode():
    ...     prepare(len(outline.layers))(make_inputs(outline.inputs, rows=2, length=5))[0].shape
    torch.Size([2, 32])
    """
    shared = [name for name in state_names(model) if name_in_snapshot(model, name) in set(outline.shared)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict(keep_vars=True).values())
    with whole_random_weights(model) if size <= _WHOLE_BYTES else random_weights(model, shared) as found:
        around: Callable[[str], AbstractContextManager[Any]] = nullcontext if found is None else found

        def prepare(layers: int) -> Run:
            skeleton = Skeleton(model, outline, 0, layers, around)
            return lambda inputs: flatten(skeleton.run(inputs, ()))[0]

        state = ModuleState(model)
        try:
            yield prepare
        finally:
            state.restore()


@dataclass(slots=True)
class _Experiment:
    """Rows that a model, or its first layers, compute in several ways."""

    run: Run
    specs: tuple[TensorSpec, ...]
    inputs: tuple[InputArray, ...]
    rows: tuple[Row, ...]
    pad: int
    state: ModuleState
    has_nan: bool = False
    _seed: int = 0
    _alone: dict[int, list[Tensor]] = field(default_factory=dict)

    def try_all(self) -> float:
        """Return the largest difference where rows share microbatches freely."""
        self.state.restore()
        first = self._compute((2, 0, 1, 5))
        return max(self._compare(self._compute(rows), first) for rows in ((0,), (2,), (5,), (1, 2, 0)))

    def try_twice(self) -> float:
        """Return the largest difference between two runs in a fresh state."""
        results = []
        for _ in range(2):
            self.state.restore()
            results.append(self._compute((2, 0, 1)))
        return self._compare(*results)

    def try_sharing(self, sharing: Sharing) -> float:
        """Return the largest difference between rows all alone in a fresh state and rows computed by a rule."""
        for row in range(len(self.rows)):
            if row not in self._alone:
                self.state.restore()
                self._alone |= self._compute((row,))
        groups = group_rows(np.array([row.length for row in self.rows]), sharing)
        batches = [tuple(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)[::-1]]
        worst = 0.0
        self.state.restore()
        for batch in (*batches, (0,), (2,), *(batch[::-1] for batch in batches[::-1])):
            if sharing.reset:
                self.state.restore()
            worst = max(worst, self._compare(self._compute(batch), self._alone))
        return worst

    def _compute(self, numbers: Sequence[int]) -> dict[int, list[Tensor]]:
        """Return the results of rows that share a microbatch, cut to the tokens of each."""
        self._seed += 1
        torch.manual_seed(self._seed)
        np.random.seed(self._seed)
        random.seed(self._seed)
        chosen = [self.rows[number] for number in numbers]
        leaves = self.run(collate(chosen, self.inputs, self.pad))
        found = {
            number: take_row(leaves, self.specs, place, [row.length for row in chosen])
            for place, number in enumerate(numbers)
        }
        self.has_nan |= any(bool(value.isnan().any()) for values in found.values() for value in values)
        return found

    def _compare(self, some: dict[int, list[Tensor]], others: dict[int, list[Tensor]]) -> float:
        return max((find_difference(values, others[row]) for row, values in some.items()), default=0.0)


def _make_experiments(
    model: nn.Module, outline: Outline, lengths: ProbeLengths, prepare: Callable[[int], Run], pad: int
) -> Iterator[_Experiment]:
    has_length = any(None in array.shape for array in outline.inputs)
    state = ModuleState(model)
    whole = tuple(outline.outputs.values())
    sizes = [(lengths.short, lengths.middle, lengths.long)] if has_length else [(1, 1, 1)]
    if has_length and lengths.beyond is not None:
        sizes.append((lengths.short, lengths.middle, lengths.beyond))
    for short, middle, long in sizes:
        # Two more of a length that is there already, and one that is one token shorter.
        wanted = (short, middle, long, short, long, max(1, long - 1))
        rows = tuple(make_row(outline.inputs, length, seed, pad) for seed, length in enumerate(wanted))
        layers = len(outline.layers) if long == sizes[0][2] else _count_layers(outline, long)
        cut = whole if layers == len(outline.layers) else tuple(item.tensor for item in outline.layers[layers].cut)
        yield _Experiment(prepare(layers), cut, outline.inputs, rows, pad, state)


def _count_layers(outline: Outline, length: int) -> int:
    """Return how many layers microbatches of such long rows are tried on."""
    total = 0.0
    for number, layer in enumerate(outline.layers):
        total += 3 * (layer.flops[0] * length + layer.flops[1] * length**2)
        if total > _LONG_FLOPS and number >= _LEAST_LAYERS:
            return number
    return len(outline.layers)


def _candidates(outline: Outline, lengths: ProbeLengths) -> Iterator[Sharing]:
    """Yield ways to form microbatches, the cheapest first."""
    kinds = [Sharing()]
    if any(None in array.shape for array in outline.inputs):
        for limit in lengths.limits[::-1]:
            kinds += [Sharing(beyond=limit), Sharing(beyond=limit, rows="same length")]
        kinds.append(Sharing(rows="same length"))
    for kind in (*kinds, Sharing(rows="none")):
        yield kind
        yield kind.model_copy(update={"reset": True})


def _name_cause(sharing: Sharing) -> str:
    causes = []
    if sharing.beyond:
        causes.append(f"a row of more than {sharing.beyond} tokens in its microbatch")
    elif sharing.rows == "same length":
        causes.append("the padding up to a longer row")
    elif sharing.rows == "none":
        causes.append("whatever row shares its microbatch")
    if sharing.reset:
        causes.append("the microbatches computed before")
    return f"{' or '.join(causes)} changes a row's result"


def find_difference(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest difference of any number, as a part of the largest number of its tensor.

    Examples
    --------
    >>> find_difference([torch.tensor([1.0, 4.0])], [torch.tensor([1.0, 2.0])])
    1.0
    """
    worst = 0.0
    for left, right in zip(some, others, strict=True):
        if left.shape != right.shape:
            return float("inf")
        if not left.numel():
            continue
        left, right = left.double(), right.double()
        apart = torch.where((left == right) | (left.isnan() & right.isnan()), 0.0, (left - right).abs())
        finite = torch.where(right.isfinite(), right.abs(), 0.0)
        size = float(finite.max())
        gap = float(apart.nan_to_num(nan=float("inf")).max())
        worst = max(worst, gap / size if size else (float("inf") if gap else 0.0))
    return worst


def _refuse(outline: Outline, problem: str, hint: str) -> CheckpointError:
    return CheckpointError(f"{outline.architecture} cannot be asked to {outline.task}: {problem}", hint=hint)
