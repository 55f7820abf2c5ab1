"""The command: python -m benchmarks NAME measures a case against peers, or what daskinfer alone costs.

`all` measures everything, each in its default size. What a NAME takes beside its name: python -m benchmarks NAME --help.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.contest import Failed, find_differences, open_contest
from benchmarks.environment import list_versions, make_environment, why_not
from benchmarks.machine import describe_machine, keep_cores, name_machine
from benchmarks.page import write_page
from benchmarks.peers.catalog import PEERS
from benchmarks.product.catalog import MEASURES
from benchmarks.results import write_result
from benchmarks.tables import show_contest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"


def main() -> None:
    options = read_options(sys.argv[1:])
    if options.name == "page":
        write_page(ROOT)
        return
    keep_cores()
    each = [read_options([name, *sys.argv[2:]]) for name in (*CASES, *MEASURES)] if options.name == "all" else [options]
    wrong = [line for one in each for line in measure(one)]
    if wrong:
        sys.exit("\n".join(wrong))


def read_options(words: list[str]) -> argparse.Namespace:
    """Return the options of one name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, default=ROOT / "work/bench")
    shared.add_argument("--write", action="store_true", help="keep the result as benchmarks/results/NAME-DATE.json")
    shared.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    names.add_parser("page", help="put the results that are kept into docs/performance.md, with charts")
    names.add_parser("all", parents=[shared], help="everything that follows")
    for name, case in CASES.items():
        add_case_options(names.add_parser(name, parents=[shared], help=case.what))
    for name, module in MEASURES.items():
        module.add_options(names.add_parser(name, parents=[shared], help=(module.__doc__ or "").splitlines()[0]))
    options = parser.parse_args(words)
    if options.name != "page":
        options.work = options.work / options.name
    return options


def add_case_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", help="only these, with commas between; `none` for daskinfer alone")
    parser.add_argument("--rows", type=int, help="instead of those of the case")
    parser.add_argument("--full", action="store_true", help="the full size of the case")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--minutes", type=float, help="begin no round that would end later; the first always runs")


def measure(options: argparse.Namespace) -> list[str]:
    """Measure one name, print it, and return what is wrong with it."""
    machine = describe_machine()
    if options.name in CASES:
        result = {"machine": machine} | run_case(CASES[options.name], options)
        wrong, show = find_differences(result), show_contest
    else:
        module = MEASURES[options.name]
        found = module.measure(options)
        result = {"machine": machine, "name": options.name} | found
        wrong, show = module.check(found, options), module.show
    if options.write:
        write_result(RESULTS, options.name, result)
    if options.json:
        print(json.dumps(result, default=str), flush=True)
    else:
        show(result)
        print(name_machine(machine), flush=True)
    return wrong


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return all that is known of a case."""
    wanted = [name for name in case.peers if options.peers is None or name in options.peers.split(",")]
    refused = make_environment() if wanted else None
    versions = list_versions()
    skipped = {name: refused or why_not(PEERS[name], case.task, versions) for name in wanted}
    peers = [PEERS[name] for name in wanted if not skipped[name]]
    rows = options.rows or (case.full_rows if options.full else case.rows)
    try:
        contest = open_contest(case, options.work, rows, peers, lambda line: print(line, file=sys.stderr, flush=True))
        found = contest.run(options.repeats, options.minutes or case.minutes)
    except Failed as error:
        sys.exit(f"{case.name}: {error}")
    return {
        "name": case.name,
        "what": case.what,
        "rows": rows,
        "repeats": found["repeats"],
        "peers": {package: versions[package] for peer in peers for package in peer.packages},
        "contestants": found["contestants"],
        "limits": found["limits"],
        "skipped": {name: reason for name, reason in skipped.items() if reason} | found["skipped"],
    }


if __name__ == "__main__":
    main()
