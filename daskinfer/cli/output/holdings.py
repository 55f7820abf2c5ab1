"""Who holds versions, and what was deleted, as text on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daskinfer.cli.output.show import print_table, stdout
from daskinfer.cli.output.text import Text
from daskinfer.ids import shorten
from daskinfer.spec.registry.collection import CollectionReport, Holder, KeptSnapshot, LockRow, PublishRow
from daskinfer.units import format_amount, format_bytes, format_duration

_STYLES = {"deleted": "bold red", "would go": "bold yellow", "kept": "bold green"}


def print_locks(rows: Sequence[LockRow], where: str) -> None:
    """Print a line for each lock."""
    cells = [
        (
            ", ".join(row.versions) or "-",
            f"sha256:{shorten(row.snapshot)}",
            row.job,
            row.purpose,
            row.by,
            row.since,
            _describe_age(row.heartbeat_age),
        )
        for row in rows
    ]
    heads = ("VERSION", "SNAPSHOT", "HELD BY", "FOR", "USER", "SINCE", "HEARTBEAT")
    print_table(
        heads, [[Text(cell) for cell in row] for row in cells], f"no job and no alias holds a version of {where}"
    )


def print_collection(report: CollectionReport) -> None:
    """Print what garbage collection did, a line for each thing."""
    verb = "would delete" if report.dry_run else "deleted"
    freed = f"{format_amount(report.blobs, 'blob')}, {format_bytes(report.size)}"
    stdout().print(Text(f"{verb} {format_amount(len(report.deleted), 'version')}: {freed}", style="bold"))
    gone = "would go" if report.dry_run else "deleted"
    lines = [
        (gone, f"{_name(row.versions, row.snapshot)}: {format_amount(row.blobs, 'blob')}, {format_bytes(row.size)}")
        for row in report.deleted
    ]
    if report.orphan_blobs:
        orphans = f"{format_amount(report.orphan_blobs, 'blob')}, {format_bytes(report.orphan_size)}"
        lines.append((gone, f"what publishes had stored that were given up: {orphans}"))
    lines += [("kept", f"{_name(row.versions, row.snapshot)}: {'; '.join(_explain(row))}") for row in report.kept]
    lines += _list_publishes("finished", report.finished) + _list_publishes("given up", report.aborted)
    lines += _list_publishes("under way", report.waiting)
    lines += [
        (
            "open",
            f"{row.collector} by {row.by} since {row.since} is deleting, or died: if so, --assume-dead {row.collector}",
        )
        for row in report.collections
    ]
    for verdict, text in lines:
        stdout().print(Text.assemble("  ", (f"{verdict:<9}", _STYLES.get(verdict, "bold")), "  ", text))


def _explain(row: KeptSnapshot) -> Iterable[str]:
    yield from row.reasons
    yield from (f"held by {_describe_holder(holder)}" for holder in row.holders)


def _describe_holder(holder: Holder) -> str:
    since = f"{holder.by}, since {holder.since}, heartbeat {_describe_age(holder.heartbeat_age)}"
    return f"{holder.job} ({holder.purpose}), {since}"


def _list_publishes(verdict: str, rows: Iterable[PublishRow]) -> list[tuple[str, str]]:
    lines = []
    for row in rows:
        age = "" if row.heartbeat_age is None else f", heartbeat {_describe_age(row.heartbeat_age)}"
        lines.append((verdict, f"{row.publish} of {row.name}, by {row.by} since {row.since}{age}"))
    return lines


def _describe_age(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{format_duration(seconds)} ago"


def _name(versions: Sequence[str], snapshot: str) -> str:
    return f"{', '.join(versions) or 'no version'} (sha256:{shorten(snapshot)})"
