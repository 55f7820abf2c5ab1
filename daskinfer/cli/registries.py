"""What became of a registry, as text on stdout: histories, damage, differences, copies."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from daskinfer.cli.show import print_lines, print_table, stdout
from daskinfer.ids import shorten
from daskinfer.spec.listing import AliasMove
from daskinfer.spec.upkeep import Difference, TensorChange, Verification
from daskinfer.units import format_bytes


def print_history(moves: Sequence[AliasMove]) -> None:
    """Print a line for each move of an alias, the newest first."""
    rows = [
        [
            Text(str(move.sequence)),
            Text(move.created),
            Text(move.by),
            Text("-" if move.version is None else f"v{move.version}"),
            Text("-" if move.snapshot is None else f"sha256:{shorten(move.snapshot)}"),
            Text(_explain(move)),
        ]
        for move in reversed(moves)
    ]
    print_table(("MOVE", "WHEN", "BY", "VERSION", "SNAPSHOT", "WHY"), rows, "it was never moved")


def print_verification(found: Verification) -> None:
    """Print what is damaged, what is unfinished, and what was looked at."""
    damaged = sum(finding.damaged for finding in found.findings)
    for finding in found.findings:
        verdict = ("damaged", "bold red") if finding.damaged else ("notice", "bold yellow")
        stdout().print(Text.assemble(verdict, f"  {finding.what}\n  where  {finding.where}\n  do     {finding.advice}"))
    looked = f"{found.snapshots:,} snapshots, {found.blobs:,} blobs and files, {found.logs:,} logs"
    depth = f"{found.tensors:,} tensors in {format_bytes(found.size)}, " + ("all hashed" if found.deep else "not read")
    verdict = (f"{damaged:,} damaged", "bold red") if damaged else ("whole", "bold green")
    stdout().print(Text.assemble(verdict, "  ", (found.reference or found.registry, "bold"), f"  {looked}; {depth}"))


def print_difference(found: Difference) -> None:
    """Print what was added, removed and changed, and a line for each changed tensor."""
    names = [
        f"{each.name}{'' if each.version is None else f' v{each.version}'} sha256:{shorten(each.snapshot)}"
        for each in (found.before, found.after)
    ]
    stdout().print(Text(f"{names[0]} -> {names[1]}", style="bold"))
    lines = {name: f"{before} -> {after}" for name, (before, after) in found.facts.items()}
    for kind, changes in (("files", found.files), ("groups", found.groups), ("tensors", found.tensors)):
        lines[kind] = f"{changes.same:,} the same"
        for verb in ("added", "removed", "changed"):
            if some := getattr(changes, verb):
                listed = f"{len(some):,}" if kind == "tensors" and verb == "changed" else ", ".join(some)
                lines[kind] += f"; {verb}: {listed}"
    print_lines(lines)
    if found.changes:
        heads = ("TENSOR", "FORM", "CHANGED", "MAX |DIFF|", "MEAN |DIFF|", "RELATIVE L2")
        print_table(heads, [[Text(cell) for cell in _change_cells(change)] for change in found.changes], "")


def _change_cells(change: TensorChange) -> list[str]:
    forms = [f"{form.dtype}[{', '.join(map(str, form.shape))}]" for form in (change.before, change.after)]
    cells = [f"{change.group}/{change.name}", forms[0] if forms[0] == forms[1] else " -> ".join(forms)]
    if change.elements is None or change.changed is None:
        return [*cells, "not comparable", "", "", ""]
    share = f"{change.changed:,} of {change.elements:,}"
    if change.not_finite:
        share += f" ({change.not_finite:,} NaN or infinite)"
    return [*cells, share, _number(change.greatest), _number(change.mean), _number(change.relative)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _explain(move: AliasMove) -> str:
    notes = []
    if move.operation != "set":
        notes.append({"unset": "unset", "merge": "two histories made one"}[move.operation])
    if move.publish is not None:
        notes.append("published")
    if move.rollback_of is not None:
        notes.append(f"took back move {move.rollback_of}, to that of move {move.restores}")
    if move.reason:
        notes.append(move.reason)
    if move.gate is not None:
        notes.append(f"gate report sha256:{shorten(move.gate)}")
    return "; ".join(notes)
