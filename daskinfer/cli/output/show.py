"""Results as text on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from daskinfer.cli.output.progress import describe_loading
from daskinfer.cli.output.text import Text
from daskinfer.ids import shorten
from daskinfer.spec.job.control import WorkerState
from daskinfer.spec.job.membership import MemberStatus
from daskinfer.spec.job.record import JobStatus
from daskinfer.spec.job.report import Incident, Report, SnapshotShare
from daskinfer.spec.measured import CheckpointProfile, LayerCost, MeasuredLayer
from daskinfer.spec.registry.listing import AliasRow, CheckpointDetail, CheckpointRow, VersionRow
from daskinfer.spec.snapshot import Resolution
from daskinfer.units import escape_line, format_amount, format_bytes, format_count, format_duration

_STYLES = {
    "done": "bold green",
    "running": "bold cyan",
    "stopped": "bold yellow",
    "replaced": "dim",
    "cancelled": "bold yellow",
    "interrupted": "bold yellow",
    "over budget": "bold red",
    "failed": "bold red",
}


def print_report(report: Report, remark: str | None = None) -> None:
    """Print what a run did, in a handful of lines."""
    version = (
        "" if report.version is None or report.checkpoint.endswith(f"@v{report.version}") else f" v{report.version}"
    )
    lines = {
        "job": report.job,
        "snapshot": f"{report.checkpoint}{version} sha256:{shorten(report.snapshot)}",
        "rows": f"{report.rows_in:,} in = {report.rows_out:,} out + {report.rows_quarantined:,} quarantined",
    }
    if len(report.snapshots) > 1:
        shares = (f"{share.rows:,} on {_tell_version(share)}" for share in report.snapshots)
        lines["snapshots"] = f"rows: {', '.join(shares)}"
    if report.trial:
        lines["trial"] = f"{report.trial} ({report.gate})"
    if report.verdict != "done":
        missing = report.rows_in - report.rows_out - report.rows_quarantined
        lines["rows"] += f" + {missing:,} to go"
    if report.rows_truncated:
        lines["truncated"] = (
            f"{format_amount(report.rows_truncated, 'row')} had more than {report.max_tokens:,} tokens, and were cut"
        )
    if report.rows_not_finite:
        lines["not finite"] = f"the model returned NaN or infinity for {format_amount(report.rows_not_finite, 'row')}"
    if report.rejects:
        lines["refused"] = _tell_rejects(report)
    if report.retries:
        recovered = sum(share.rows_recovered for share in report.retries)
        lines["retried"] = f"{format_amount(recovered, 'row')} were recovered by {len(report.retries)} retry(s)"
    if report.members:
        shares = (f"{share.rows:,} by {share.driver}" for share in report.members)
        lines["members"] = f"rows: {', '.join(shares)}"
    if report.partitions_resumed:
        kept = f"{report.partitions_resumed:,} of {format_amount(report.partitions, 'partition')}"
        lines["resumed"] = f"{kept} were committed by an earlier run"
    speed = f"{report.rows_per_second:,.0f} rows/s over {format_duration(report.running_seconds)}"
    whole = f"{format_duration(report.seconds)} in all, {format_duration(report.startup_seconds)} to start"
    if report.precision:
        lines["precision"] = report.precision
    if report.kernels:
        lines["linear layers"] = report.kernels
    if report.length:
        lines["length"] = report.length
    if report.sharing:
        lines["microbatches"] = report.sharing
    if (padding := report.padded_tokens - report.tokens) > 0:
        lines["padding"] = f"{padding / report.padded_tokens:.1%} of the tokens that were computed"
    if report.left_out:
        lines["left out"] = report.left_out
    if report.incidents:
        lines["incidents"] = "; ".join(_tell_incidents(report.incidents))
    lines |= {"speed": f"{speed} ({whole})", "output": report.output, "report": report.report}
    _print_verdict(report.verdict, report.name, remark or report.message)
    print_lines(lines)


def print_retry(report: Report) -> None:
    """Print what a retry did."""
    lines = {
        "job": report.job,
        "rows": f"{report.rows_in:,} in = {report.rows_out:,} out + {report.rows_quarantined:,} quarantined",
    }
    if report.rejects:
        lines["refused"] = _tell_rejects(report)
    lines |= {"took": format_duration(report.seconds), "output": report.output, "report": report.report}
    _print_verdict(report.verdict, report.name, report.message)
    print_lines(lines)


def _tell_rejects(report: Report) -> str:
    more = report.rows_quarantined - 1
    return report.rejects[0] + (f", and {more:,} more in {report.output}/_quarantine" if more else "")


def _tell_incidents(incidents: Sequence[Incident]) -> Iterator[str]:
    """Return a few words on each kind of incident, with the longest times of any."""
    for kind in dict.fromkeys(incident.kind for incident in incidents):
        found = [incident for incident in incidents if incident.kind == kind]
        detected = max(incident.detect_seconds or 0.0 for incident in found)
        recovered = max(incident.recover_seconds or 0.0 for incident in found)
        times = [
            f"{what} after {format_duration(seconds)}"
            for what, seconds in (("detected", detected), ("recovered", recovered))
            if seconds
        ]
        at_most = " at most" if times and len(found) > 1 else ""
        number = f"{len(found):,} " if len(found) > 1 else ""
        yield f"{number}{kind}" + (f" ({', '.join(times)}{at_most})" if times else "")


def _tell_version(share: SnapshotShare) -> str:
    version = "" if share.version is None else f"v{share.version} "
    return f"{version}sha256:{shorten(share.snapshot)}"


def print_status(status: JobStatus) -> None:
    """Print how a job stands."""
    share = f" ({status.rows_done / status.rows_total:.0%})" if status.rows_total else ""
    driver = status.driver
    if status.heartbeat_age is not None:
        driver += f", last heard of {format_duration(status.heartbeat_age)} ago"
    remark = status.message
    if status.state in ("stopped", "cancelled", "failed"):
        recurs = status.progress is not None and status.progress.recurs
        way = (
            f"the same command would stop there again; see why: daskinfer report {status.job}"
            if recurs
            else "run the same command again to resume it"
        )
        remark = "; ".join(filter(None, (remark, way)))
    if status.state == "replaced":
        remark = "another job has taken its output (--fresh), so it can never go on"
    lines = {
        "job": status.job,
        "snapshot": f"{status.checkpoint} sha256:{shorten(status.snapshot)}",
        "rows": f"{status.rows_done:,} of {status.rows_total:,}{share}, {status.rows_quarantined:,} quarantined"
        + (f", {status.rows_truncated:,} truncated" if status.rows_truncated else "")
        + (f", {status.rows_not_finite:,} with NaN or infinity" if status.rows_not_finite else ""),
        "partitions": f"{status.partitions_done:,} of {status.partitions:,}",
    }
    progress = status.progress
    if progress is not None and progress.phase == "loading" and status.state == "running":
        lines["loading"] = describe_loading(progress)
    if progress is not None and any(progress.devices):
        lines["devices"] = "; ".join(f"stage {number} {name}" for number, name in enumerate(progress.devices) if name)
    if progress is not None and status.state == "running":
        lines |= _list_workers(progress.workers)
    lines |= {"output": status.output, "created": status.created, "driver": driver}
    if status.members:
        lines.pop("driver")
        lines |= {f"member {number}": _tell_member(member) for number, member in enumerate(status.members, start=1)}
    _print_verdict(status.state, status.name, remark)
    print_lines(lines)


def _tell_member(member: MemberStatus) -> str:
    state = "live" if member.is_alive else "gone"
    heard = format_duration(member.heartbeat_age)
    return f"{member.driver}, {state}, {format_amount(member.rows_done, 'row')}, last heard of {heard} ago"


def _list_workers(workers: Sequence[WorkerState]) -> dict[str, str]:
    """Return who computes every stage, who stands by, and who waits."""
    places: dict[str, list[str]] = {
        f"stage {stage}": [] for stage in sorted({n for one in workers for n in one.stages})
    }
    for one in workers:
        name = f" ({one.name})" if one.name not in ("", one.worker) else ""
        does = f", {one.does}" if one.does in ("loads", "leaves") else ""
        keeps = f", keeps stage {' and '.join(map(str, one.warm))}" if one.warm else ""
        where = [f"stage {stage}" for stage in one.stages] or ["standby" if one.warm else "spare"]
        for place in where:
            places.setdefault(place, []).append(f"{one.host_port}{name}{does}{keeps}")
    return {place: "; ".join(found) for place, found in places.items()}


def print_jobs(jobs: Sequence[JobStatus], workspace: str) -> None:
    """Print a line for each job."""
    rows = [
        (
            Text(job.job),
            Text(job.state, style=_STYLES[job.state]),
            Text(f"{job.rows_done:,} of {job.rows_total:,}"),
            Text(job.checkpoint),
            Text(job.created),
            Text(job.output),
        )
        for job in jobs
    ]
    print_table(("JOB", "STATE", "ROWS", "CHECKPOINT", "CREATED", "OUTPUT"), rows, f"no jobs in {workspace}")


def print_resolution(verb: str, resolution: Resolution, alias: str | None = None) -> None:
    """Print which version something became."""
    version = f" v{resolution.version}" if resolution.version is not None else ""
    pointed = f", {resolution.name}@{alias} points at it" if alias else ""
    stdout().print(Text(f"{verb} {resolution.name}{version} {resolution.snapshot}{pointed}"))


def print_changes(provenance: Mapping[str, str]) -> None:
    """Print what a published version has otherwise than the checkpoint that it was made from."""
    said = {"class": "published as", "dropped": "left out, the model has no place for it:", "missing": "missing:"}
    for name, words in said.items():
        if name in provenance:
            first, *more = provenance[name].split(", ") if name != "class" else [provenance[name]]
            stdout().print(Text(f"{words} {first}" + (f" and {len(more)} more" if more else "")))
    if "missing" in provenance:
        stdout().print(Text("tasks that need what is missing will be refused"))


def print_checkpoints(checkpoints: Sequence[CheckpointRow], registry: str) -> None:
    """Print a line for each checkpoint name."""
    rows = [
        (
            Text(row.name),
            Text(f"v{row.latest.number}"),
            Text(f"sha256:{shorten(row.latest.snapshot)}"),
            Text(f"{row.versions}{_yanked(row)}"),
            Text(", ".join(map(_alias, row.aliases))),
        )
        for row in checkpoints
    ]
    empty = f"no checkpoints in {registry}; publish one: daskinfer checkpoint publish NAME DIRECTORY"
    print_table(("NAME", "LATEST", "SNAPSHOT", "VERSIONS", "ALIASES"), rows, empty)


def print_checkpoint(detail: CheckpointDetail) -> None:
    """Print one snapshot, and what goes by its name."""
    resolution = detail.resolution
    version = f" v{resolution.version}" if resolution.version is not None else ""
    stdout().print(Text(f"{resolution.name}{version}", style="bold"))
    yank = next((row.yanked for row in detail.versions if row.number == resolution.version), None)
    if yank is not None:
        stdout().print(Text(f"yanked {yank}"))
    lines = {
        "snapshot": resolution.snapshot,
        "model": f"{detail.architecture}, {detail.dtype}, {format_bytes(detail.size)}",
        "groups": ", ".join(f"{name} {format_bytes(size)}" for name, size in detail.groups.items()),
        "files": ", ".join(detail.files),
        "versions": ", ".join(map(_version, detail.versions)),
        "aliases": ", ".join(map(_alias, detail.aliases)),
    }
    print_lines({name: value for name, value in (lines | detail.provenance).items() if value})


def print_profile(profile: CheckpointProfile) -> None:
    """Print what each layer costs, and what it took on this machine."""
    resolution, measured = profile.resolution, profile.measured
    version = f" v{resolution.version}" if resolution.version is not None else ""
    stdout().print(Text(f"{resolution.name}{version} {resolution.snapshot}", style="bold"))
    typical = f"{profile.rows} rows" + (f" of {profile.length} tokens" if profile.per == "token" else "")
    lines = {
        "model": f"{profile.architecture}, task {profile.task}, {profile.dtype}",
        "cuts": f"none: {profile.uncut}" if profile.uncut else "before every layer but the first",
        "microbatches": profile.sharing.describe(),
        "counted": f"in a microbatch of {typical}, for one {profile.per}",
    }
    if profile.left_out:
        lines["left out"] = profile.left_out
    if measured is not None:
        threads = f"{measured.numerics.threads} thread(s)" if measured.device.kind == "cpu" else measured.device.kind
        when = "stored; --fresh measures again" if profile.stored else "now"
        lines["measured"] = f"{measured.measured} ({when}) on {measured.device.name}, {threads}"
        if by := [size for size, kernel in measured.numerics.kernels.model_dump().items() if kernel == "onednn"]:
            lines["measured"] += f", {' and '.join(by)} linear layers by oneDNN"
    print_lines(lines)
    heads = ["LAYER", "PARAMETERS", f"FLOP/{profile.per.upper()}", "CROSSES", f"BYTES/{profile.per.upper()}"]
    times: Sequence[MeasuredLayer | None] = measured.layers if measured is not None else [None] * len(profile.layers)
    if measured is not None:
        sizes = [timing.rows * timing.length for timing in measured.layers[0].timings]
        heads += [*(f"{size:,} {profile.per.upper()}S" for size in sizes), "GFLOP/S", "TIME BY FIT", ""]
    rows = [_cost_cells(cost) + _time_cells(time) for cost, time in zip(profile.layers, times, strict=True)]
    total = ["all", format_bytes(profile.parameter_bytes), format_count(profile.flops), "", ""]
    if measured is not None:
        columns = zip(*(layer.timings for layer in measured.layers), strict=True)
        total += [_seconds(sum(timing.seconds for timing in column)) for column in columns]
    cells = [[Text(cell) for cell in row] for row in (*rows, total)]
    print_table(heads, [[*row, *[Text()] * (len(heads) - len(row))] for row in cells], "")


def _cost_cells(cost: LayerCost) -> list[str]:
    crossing = ["-", "-"]
    if cost.cut:
        tensors = f"{len(cost.cut)} tensors" if len(cost.cut) > 1 else "1 tensor"
        crossing = [tensors, format_bytes(cost.cut_bytes)]
    return [cost.name, format_bytes(cost.parameter_bytes), format_count(cost.flops), *crossing]


def _time_cells(layer: MeasuredLayer | None) -> list[str]:
    if layer is None:
        return []
    largest = layer.timings[-1]
    return [
        *(_seconds(timing.seconds) for timing in layer.timings),
        f"{largest.flops / largest.seconds / 1e9:.3g}",
        _seconds(layer.fixed_seconds)
        + ("" if layer.flops_per_second is None else f" + FLOP / {layer.flops_per_second / 1e9:.3g} G/s"),
        "" if layer.like is None else f"as {layer.like}",
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _version(row: VersionRow) -> str:
    return f"v{row.number} sha256:{shorten(row.snapshot)}{' (yanked)' if row.yanked else ''}"


def _yanked(row: CheckpointRow) -> str:
    return f" ({', '.join(f'v{number}' for number in row.yanked)} yanked)" if row.yanked else ""


def _alias(row: AliasRow) -> str:
    return f"{row.name} -> {f'v{row.version}' if row.version is not None else shorten(row.snapshot)}"


def _print_verdict(verdict: str, name: str, remark: str) -> None:
    line = Text.assemble((verdict, _STYLES[verdict]), "  ", (escape_line(name), "bold"))
    stdout().print(line.append(f"  {escape_line(remark)}" if remark else ""))


def print_lines(lines: dict[str, str]) -> None:
    """Print named values, one a line."""
    width = max(map(len, lines))
    for name, value in lines.items():
        stdout().print(Text.assemble((f"  {name:<{width}}  ", "dim"), escape_line(value)))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Text]], empty: str) -> None:
    """Print a table that cuts nothing off, or `empty` where it has no rows."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        for cell in row:
            cell.plain = escape_line(cell.plain)
        table.add_row(*row)
    if not table.row_count:
        stdout().print(Text(empty))
        return
    # Wide enough to cut nothing off: a job id that ends in dots cannot be copied.
    Console(highlight=False, soft_wrap=True, width=10_000).print(table)


def stdout() -> Console:
    """Return a console that leaves the text as it is."""
    return Console(highlight=False, soft_wrap=True)
