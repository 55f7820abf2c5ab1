"""What became of a registry, as text on stdout: histories, damage, differences, copies."""

from __future__ import annotations

from collections.abc import Sequence

from daskinfer.cli.output.show import print_lines, print_table, stdout
from daskinfer.cli.output.text import Text
from daskinfer.ids import shorten
from daskinfer.spec.registry.listing import AliasMove
from daskinfer.spec.registry.upkeep import (
    Difference,
    SyncedAlias,
    SyncedVersion,
    SyncReport,
    TensorChange,
    Verification,
)
from daskinfer.units import format_amount, format_bytes


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
    snapshots, logs = format_amount(found.snapshots, "snapshot"), format_amount(found.logs, "log")
    looked = f"{snapshots}, {format_amount(found.blobs, 'blob')} and files, {logs}"
    depth = f"{format_amount(found.tensors, 'tensor')} in {format_bytes(found.size)}, " + (
        "all hashed" if found.deep else "not read"
    )
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


_OUTCOMES = {
    "forward": "got its newer moves",
    "adopt": "took it over: the source had taken in all moves there",
    "merged": "was merged as told",
}


def print_sync(found: SyncReport) -> None:
    """Print what was copied and what became of the aliases; what was equal is only counted."""
    would = "would be " if found.dry_run else ""
    for version in found.versions:
        line = f"{version.name} v{version.number} sha256:{shorten(version.snapshot)}"
        if version.outcome == "copied":
            stdout().print(Text(f"{would}copied  {line}, {format_bytes(version.size)}{_tell_copy(version)}"))
        elif version.outcome != "there":
            why = "it was deleted there" if version.outcome == "deleted" else "it is no more in the source"
            stdout().print(Text(f"skipped  {line}: {why}"))
    for alias in found.aliases:
        _print_synced(alias, would)
    same = sum(version.outcome == "there" for version in found.versions)
    quiet = sum(alias.outcome in ("equal", "ahead") for alias in found.aliases)
    copied = [version for version in found.versions if version.outcome == "copied"]
    parts = [
        f"{format_amount(len(copied), 'version')} ({format_bytes(sum(version.size for version in copied))}) {would}copied",
        f"{same:,} were there",
        f"{quiet:,} of {format_amount(len(found.aliases), 'alias')} did not move",
        *(format_amount(*some) for some in ((found.yanks, "yank"), (found.signatures, "signature")) if some[0]),
    ]
    verdict = ("in sync", "bold green") if found.clean else ("not in sync", "bold red")
    if found.dry_run:
        verdict = ("dry run", "bold cyan")
    stdout().print(Text.assemble(verdict, "  ", (f"{found.source} -> {found.target}", "bold"), f"  {', '.join(parts)}"))


def _tell_copy(version: SyncedVersion) -> str:
    notes = ""
    if version.becomes is not None and version.becomes != version.number:
        notes += f"; it is v{version.becomes} there"
    if version.referred:
        notes += f"; {format_amount(version.referred, 'layer group')} in files that it refers to"
    return notes


def _print_synced(row: SyncedAlias, would: str) -> None:
    name, here = f"{row.name}@{row.alias}", row.source.target
    there = "nowhere" if row.target is None else row.target.target
    if row.outcome == "conflict" and row.target is not None:
        stdout().print(Text.assemble(("conflict", "bold red"), f"  {name} was moved in both registries:"))
        for side, head in (("source", row.source), ("target", row.target)):
            stdout().print(Text(f"  {side}  {head.target} by {head.by} at {head.created} (move {head.sequence})"))
        stdout().print(Text(f"  do      choose one: --resolve {name}=source, or --resolve {name}=target"))
    elif row.outcome == "blocked":
        stdout().print(Text.assemble(("blocked", "bold red"), f"  {name} stays at {there}: {row.problem}"))
    elif row.outcome in _OUTCOMES:
        what = f"{_OUTCOMES[row.outcome]}, {format_amount(row.moves, 'move')}; in the source it is {here}"
        stdout().print(Text(f"{would}moved  {name} {what}"))


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
