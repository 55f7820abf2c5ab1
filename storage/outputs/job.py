"""The sinks of a job, as its record asks for them: for its driver, and for the attempts at its partitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from daskinfer.spec.commit import CommitRecord
from daskinfer.spec.generation import Generations, Pin
from daskinfer.spec.job import JobRecord
from daskinfer.storage.filesystem import absolute_url
from daskinfer.storage.generations import GenerationLog
from daskinfer.storage.jobs import JobStore
from daskinfer.storage.outputs.choice import choose_output_format, make_sink
from daskinfer.storage.outputs.ledger import Ledger
from daskinfer.storage.outputs.reading import SealedPart, read_part
from daskinfer.storage.outputs.sink import OutputLayout, OutputPart, PartSink, WholeOutput
from daskinfer.storage.outputs.staging import StagedOutput, StagedPartSink, staged_url
from daskinfer.storage.outputs.standing import Standing
from daskinfer.storage.outputs.supplements import Round, SupplementSink, close_round, supplement_url


def open_output(record: JobRecord, workspace: str, log: GenerationLog | None = None) -> WholeOutput:
    """Return a job's whole output.

    Parameters
    ----------
    record
        The job.
    workspace
        Where it is recorded.
    log
        The driver's own log of generations; without it every look reads the log anew.
    """
    layout = _make_layout(record, record.first_pin if not record.is_staged else None)
    sink = make_sink(record.output, _format_of(record), layout)
    if not record.is_staged:
        return sink
    if log is not None:
        return StagedOutput(record.output, layout, sink, lambda: log.known)
    return StagedOutput(record.output, layout, sink, lambda: read_generations(record, workspace))


def open_standing(record: JobRecord, workspace: str, log: GenerationLog | None = None) -> Standing:
    """Return how far a job is; the parameters are those of `open_output`."""
    layout = _make_layout(record, None)
    if log is not None:
        return Standing(absolute_url(record.output), layout, lambda: log.known)
    return Standing(absolute_url(record.output), layout, lambda: read_generations(record, workspace))


def read_generations(record: JobRecord, workspace: str) -> Generations:
    """Return the snapshots of a job, as its log tells now."""
    return GenerationLog(JobStore(workspace, record.job).url, record.first_pin).known


def open_part_sink(record: JobRecord, pin: Pin) -> PartSink:
    """Return where attempts on a pin write and commit."""
    layout, name = _make_layout(record, pin), _format_of(record)
    if not (record.is_staged or pin.generation):
        return make_sink(record.output, name, layout)
    return open_stage(record, pin)


def open_stage(record: JobRecord, pin: Pin) -> StagedPartSink:
    """Return the folder of a generation whose parts lie apart."""
    layout = _make_layout(record, pin)
    inner = make_sink(staged_url(record.output, record.job, pin.generation), _format_of(record), layout)
    return StagedPartSink(absolute_url(record.output), layout, pin, inner)


def open_supplement(record: JobRecord, pin: Pin, round: int, epoch: int) -> SupplementSink:
    """Return where a driver's merged parts of a retry wait; `pin` is what their rows are computed on."""
    layout, url = _make_layout(record, pin), absolute_url(record.output)
    inner = make_sink(supplement_url(url, record.job, round, epoch), _format_of(record), layout)
    return SupplementSink(url, layout, round, inner)


def read_sealed(record: JobRecord, part: SealedPart) -> OutputPart:
    """Return a part of a job that is sealed, as it was before a retry."""
    layout = _make_layout(record, record.first_pin)
    return read_part(absolute_url(record.output), layout, part.partition, part.path, part.digest)


def merge_round(record: JobRecord, generations: Generations, round: Round, check: Callable[[], None]) -> dict[str, Any]:
    """Merge a retry whose parts are all committed into the output; see `close_round`."""
    layout, url = _make_layout(record, record.first_pin), absolute_url(record.output)

    scopes = {part.partition: generations.owner(part.partition) if record.is_staged else 0 for part in round.parts}
    opened = {scope: Ledger(url, layout, scope) for scope in {*scopes.values()}}
    ledgers = {partition: opened[scope] for partition, scope in scopes.items()}
    records = list(Ledger(url, layout, round=round.number).committed())
    return close_round(url, make_sink(url, _format_of(record), layout), round, records, ledgers, check)


def read_staged(record: JobRecord, pin: Pin, commit: CommitRecord) -> OutputPart:
    """Return a committed part of a job that is not sealed yet."""
    place = staged_url(record.output, record.job, pin.generation)
    url = place if record.is_staged or pin.generation else absolute_url(record.output)
    return read_part(url, _make_layout(record, pin), commit.partition, commit.path, commit.digest)


def describe_result(record: JobRecord, snapshot: str) -> dict[str, str]:
    """Return what the manifest of a job's output says of the job."""
    return {
        "job": record.job,
        "key": record.key,
        "checkpoint": record.resolution.reference,
        "snapshot": snapshot,
        "recipe": record.recipe.digest,
        "inputs": record.inputs,
        "code": record.code,
        "plan": record.plan.digest,
    }


def _format_of(record: JobRecord) -> str:
    return choose_output_format(record.output, record.recipe.output.format)


def _make_layout(record: JobRecord, pin: Pin | None) -> OutputLayout:
    recipe = record.recipe
    provenance: Mapping[str, str] = {} if pin is None else {"daskinfer_snapshot": pin.snapshot}
    return OutputLayout(
        job=record.job,
        fields=record.fields,
        keep=record.keep,
        partition_rows=recipe.input.partition_rows,
        rows=record.rows,
        metadata={**provenance, "daskinfer_recipe": recipe.digest},
    )
