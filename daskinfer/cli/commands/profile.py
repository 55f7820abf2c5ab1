"""`profile`: what the layers of a checkpoint cost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.output.console import print_json

if TYPE_CHECKING:
    from daskinfer.spec.outline import InputArray

_INPUT = re.compile(r"(?P<name>\w+)=(?P<dtype>\w+)(:(?P<shape>\d+(x\d+)*))?")


def _parse_inputs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[InputArray, ...]:
    from daskinfer.spec.outline import ITEM_BYTES, InputArray

    # Outputs may be complex; no column of an input is.
    known = [name for name in ITEM_BYTES if not name.startswith("complex")]
    arrays = []
    for value in values:
        found = _INPUT.fullmatch(value)
        if found is None or found["dtype"] not in known:
            raise click.BadParameter(
                f"{value!r} is not NAME=dtype:shape, such as pixel_values=float32:3x32x32; types are {', '.join(known)}"
            )
        shape = tuple(map(int, found["shape"].split("x"))) if found["shape"] else ()
        arrays.append(InputArray(name=found["name"], dtype=found["dtype"], shape=shape))
    return tuple(arrays)


@click.command()
@click.argument("checkpoint")
@click.option(
    "--task",
    type=click.Choice(["embed", "classify", "score", "forward"]),
    default="embed",
    show_default=True,
    help="What the model is to do.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="Precision of weights and activations.",
)
@click.option("--max-length", type=click.IntRange(min=1), help="Longest text in tokens, as in model.options.")
@click.option("--entry", metavar="MODULE:FUNCTION", help="Function of your own that builds the model.")
@click.option("--trust-code", is_flag=True, help="Run the code that comes with CHECKPOINT.")
@click.option(
    "--input",
    "inputs",
    metavar="NAME=DTYPE:SHAPE",
    multiple=True,
    callback=_parse_inputs,
    help="An array that the forward takes, without the rows, for --task forward. May be repeated.",
)
@click.option("--measure/--no-measure", default=True, help="Time the layers on this machine's device, or only count.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores to measure with; by default all.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@registry_option
@json_option
def profile(
    checkpoint: str,
    task: Any,
    dtype: Any,
    max_length: int | None,
    entry: str | None,
    trust_code: bool,
    inputs: tuple[InputArray, ...],
    measure: bool,
    threads: int | None,
    fresh: bool,
    registry: str,
    as_json: bool,
) -> None:
    """Show what each layer of CHECKPOINT costs and where the model can be cut.

    CHECKPOINT is a reference, or a directory or the URL of one, which is published on its first use. Bytes and
    operations are counted without reading weights. Then every layer is loaded by itself and timed; the times are kept
    in the registry.

    \b
    Examples:
      daskinfer profile minilm@prod
      daskinfer profile llama@v1 --task score --dtype bfloat16 --no-measure
      daskinfer profile unet@prod --task forward --input image=float32:3x256x256
    """
    from daskinfer import api
    from daskinfer.cli.output.show import print_profile
    from daskinfer.cli.output.transfer import StepDisplay
    from daskinfer.spec.recipe.schema import ModelOptions

    with StepDisplay(checkpoint) as display:
        found = api.profile(
            checkpoint,
            registry=registry,
            task=task,
            dtype=dtype,
            options=ModelOptions() if max_length is None else ModelOptions(max_length=max_length),
            entry=entry,
            trust_code=trust_code,
            inputs=inputs,
            threads=threads,
            measure=measure,
            fresh=fresh,
            watch=display,
        )
    if as_json:
        print_json(found)
    else:
        print_profile(found)
