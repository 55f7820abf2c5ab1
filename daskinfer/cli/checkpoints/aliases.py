"""`checkpoint alias`, `history`, `rollback` and `yank`: what names lead to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from daskinfer.cli.options import json_option, registry_option
from daskinfer.cli.output.console import print_json
from daskinfer.errors import UsageError

_expect_option = click.option(
    "--expect", metavar="N", type=click.IntRange(0), help="Fail unless this becomes move N of the alias's history."
)
_reason_option = click.option("--reason", help="Why; it stays in the history.")


@click.command()
@click.argument("name")
@click.argument("alias")
@click.argument("target", required=False)
@click.option("--unset", is_flag=True, help="Let the alias point nowhere; its history stays.")
@_expect_option
@_reason_option
@click.option("--gate", metavar="FILE", type=click.Path(), help="JSON report that let the version pass; it is kept.")
@registry_option
@json_option
def alias(
    name: str,
    alias: str,
    target: str | None,
    unset: bool,
    expect: int | None,
    reason: str | None,
    gate: str | None,
    registry: str,
    as_json: bool,
) -> None:
    """Point ALIAS of NAME at TARGET: a version, a digest or another alias.

    Running jobs keep the version that they are locked on. Every move stays in the alias's history.

    \b
    Examples:
      daskinfer checkpoint alias minilm prod v3 --reason "passed the canary"
      daskinfer checkpoint alias minilm prod candidate --expect 7 --gate gate.json
      daskinfer checkpoint alias minilm old --unset
    """
    if unset == (target is not None) or (unset and gate):
        raise click.UsageError("give a TARGET, with --gate if there is one, or --unset")
    report = None if gate is None else _read_gate(gate)
    from daskinfer import api
    from daskinfer.cli.output.show import print_resolution, stdout

    if target is None:
        move = api.unset_alias(name, alias, registry=registry, expect=expect, reason=reason)
        if as_json:
            print_json(move)
        else:
            stdout().print(f"{name}@{alias} points nowhere now (move {move.sequence})")
        return
    found = api.set_alias(name, alias, target, registry=registry, expect=expect, reason=reason, gate=report)
    if as_json:
        print_json(found)
    else:
        print_resolution(f"{name}@{alias} is now", found)


@click.command()
@click.argument("name")
@click.argument("alias")
@registry_option
@json_option
def history(name: str, alias: str, registry: str, as_json: bool) -> None:
    """List every move of ALIAS of NAME: when, by whom, where to and why.

    \b
    Examples:
      daskinfer checkpoint history minilm prod
    """
    from daskinfer import api
    from daskinfer.cli.output.registries import print_history

    moves = api.alias_history(name, alias, registry=registry)
    if as_json:
        rows = [move.model_dump(mode="json") for move in moves]
        click.echo(json.dumps({"registry": registry, "name": name, "alias": alias, "moves": rows}))
    else:
        print_history(moves)


@click.command()
@click.argument("name")
@click.argument("alias")
@click.option("--to", metavar="N", type=click.IntRange(0), help="Go back to where move N of its history pointed.")
@_expect_option
@_reason_option
@registry_option
@json_option
def rollback(
    name: str, alias: str, to: int | None, expect: int | None, reason: str | None, registry: str, as_json: bool
) -> None:
    """Point ALIAS of NAME at what it pointed at before, as a new move.

    A second rollback goes back further. Where somebody moves the alias meanwhile, nothing is changed.

    \b
    Examples:
      daskinfer checkpoint rollback minilm prod --reason "labels drift"
      daskinfer checkpoint rollback minilm prod --to 4
    """
    from daskinfer import api
    from daskinfer.cli.output.show import print_resolution

    found = api.roll_back(name, alias, registry=registry, to=to, expect=expect, reason=reason)
    if as_json:
        print_json(found)
    else:
        print_resolution(f"{name}@{alias} is back at", found)


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--reason", help="Why; whoever asks for the version is told.")
@click.option("--undo", is_flag=True, help="Take it back.")
@registry_option
@json_option
def yank(name: str, version: str, reason: str | None, undo: bool, registry: str, as_json: bool) -> None:
    """Let no name lead to VERSION of NAME any more.

    References by version number or by an alias that points to it are refused, and NAME alone means another version.
    Running jobs keep it, and its full digest still leads to it.

    \b
    Examples:
      daskinfer checkpoint yank minilm v3 --reason "trained on the test set"
      daskinfer checkpoint yank minilm v3 --undo
    """
    from daskinfer import api
    from daskinfer.cli.output.show import stdout

    row = api.yank(name, version, registry=registry, reason=reason, undo=undo)
    if as_json:
        print_json(row)
    else:
        stdout().print(f"{name} v{row.number} {row.snapshot} {'may be used again' if undo else 'is yanked'}")


def _read_gate(path: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="Give a JSON file.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="A gate report is one JSON object.") from error
    if not isinstance(report, dict):
        raise UsageError(f"{path} holds no JSON object", hint="A gate report is one JSON object.")
    return report
