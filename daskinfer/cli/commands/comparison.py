"""`compare`: two finished outputs side by side."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from daskinfer.cli.options import json_option
from daskinfer.cli.output.console import print_json
from daskinfer.errors import UsageError

if TYPE_CHECKING:
    from daskinfer.spec.recipe.gate import Gate

_EXIT_CODES = """\b
Exit codes:
  0    the candidate passes
  1    it does not, or an output is damaged
  2    the arguments are wrong, or the outputs cannot be compared
"""


@click.command(epilog=_EXIT_CODES)
@click.argument("current")
@click.argument("candidate")
@click.option("--tolerance", metavar="T", help="Difference up to which floats are close; short for --gate tolerance=T.")
@click.option(
    "--gate",
    "thresholds",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a threshold, e.g. max_changed=0.02; none switches it off. May be repeated.",
)
@click.option("--html", "page", type=click.Path(dir_okay=False), help="Write the report as one HTML file.")
@json_option
@click.pass_context
def compare(
    ctx: click.Context,
    current: str,
    candidate: str,
    tolerance: str | None,
    thresholds: tuple[str, ...],
    page: str | None,
    as_json: bool,
) -> None:
    """Compare two finished outputs of the same input, row by row, and say whether CANDIDATE passes the gate.

    CURRENT is the output that is in use. The two may be of different formats and partitions. Rows are told by their
    number in the input; those that one of the two refused are counted apart.

    \b
    Thresholds (and their defaults):
      tolerance=0.001         floats are close up to T * max(1, |current|)
      max_changed=none        share of rows of a column that are not close
      max_label_changes=0.05  share of rows with another label
      max_label_drift=0.1     population stability index of the labels
      max_length_drift=0.1    relative change of the mean length of texts, and of num_tokens
      max_logprob_drift=0.1   Kolmogorov-Smirnov statistic of logprob
      max_nan=0               share of rows with NaN or infinity where there was a number
      max_quarantined=0.001   share of rows that only the candidate refused
      min_cosine=0.9          mean cosine of vectors
      min_rows=100            rows that both have

    \b
    Examples:
      daskinfer compare results/v1.zarr results/v2.zarr
      daskinfer compare results/v1.zarr results/v2.zarr --gate max_changed=0.02 --html report.html
      daskinfer compare results/v1.zarr results/v2.zarr --json > gate.json
    """
    gate = _read_gate([*thresholds, *([] if tolerance is None else [f"tolerance={tolerance}"])])
    from daskinfer import api
    from daskinfer.cli.output.gates import print_gate
    from daskinfer.cli.output.pages import write_page
    from daskinfer.cli.output.transfer import StepDisplay
    from daskinfer.reports.gate import render_gate

    with StepDisplay("compare") as display:
        report = api.compare(current, candidate, gate, watch=display)
    if page is not None:
        write_page(page, render_gate(report))
    if as_json:
        print_json(report)
    else:
        print_gate(report)
    ctx.exit(0 if report.verdict == "passed" else 1)


def _read_gate(thresholds: list[str]) -> Gate:
    from pydantic import ValidationError

    from daskinfer.spec.recipe.gate import Gate

    values: dict[str, str | None] = {}
    for threshold in thresholds:
        key, equals, text = threshold.partition("=")
        if not equals:
            raise UsageError(f"--gate {threshold}: KEY=VALUE is wanted", hint="For example: --gate max_changed=0.02")
        if key not in Gate.model_fields:
            close = get_close_matches(key, Gate.model_fields, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(Gate.model_fields)}."
            raise UsageError(f"--gate {threshold}: there is no threshold {key}", hint=hint)
        values[key] = None if text == "none" else text
    try:
        return Gate.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0])
        raise UsageError(
            f"--gate {key}={'none' if values[key] is None else values[key]}: {problem['msg']}",
            hint=f"{key}: {Gate.model_fields[key].description}",
        ) from None
