"""What became of a registry, as text on stdout: histories, damage, differences, copies."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from daskinfer.cli.show import print_table, stdout
from daskinfer.ids import shorten
from daskinfer.spec.listing import MoveRow
from daskinfer.spec.upkeep import Verification
from daskinfer.units import format_bytes


def print_history(moves: Sequence[MoveRow]) -> None:
    """Print a line for each move of an alias, the newest first."""
    rows = [
        [
            Text(str(move.sequence)),
            Text(move.at),
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


def _explain(move: MoveRow) -> str:
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
