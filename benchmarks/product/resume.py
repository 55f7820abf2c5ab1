"""How soon a job with very many committed partitions is back at work, and what of its input it reads again.

A job of one row a partition is started and interrupted. The records of a hundred thousand partitions are then put where
drivers would have put them, the last few not indexed yet, as a killed driver leaves them; what they say of their parts is
copied from one that was computed, and so are the parts. The job is resumed by the command that a user would type, until its
next commit:

    python -m benchmarks resume --partitions 100000
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from daskinfer import api
from daskinfer.errors import Interrupted
from daskinfer.ids import canonical_json
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.spec.job.record import Progress
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.outputs.commit_index import INDEX_RECORDS, CommitDigest, tabulate, write_index
from daskinfer.testing.models.tinymodels import make_tiny_bert
from daskinfer.units import format_amount

LEFT = 1_000
"""Partitions that are still to be computed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--partitions", type=int, default=100_000, help="that are committed")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds until it is at work before this fails")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds until the job is at work."""
    shutil.rmtree(options.work, ignore_errors=True)
    recipe = write_job(options.work.resolve(), options.partitions + LEFT)
    interrupt(recipe)
    commits = next((options.work.resolve() / "out.parquet/_daskinfer/commits").iterdir())
    fill(commits, options.partitions)
    seconds = time_resume(recipe, commits / f"{options.partitions:08d}.json")
    return {"partitions": options.partitions, "seconds": seconds}


def show(result: dict[str, Any]) -> None:
    amount = format_amount(result["partitions"], "partition")
    print(f"back at work after {result['seconds']:.1f} s, with {amount} committed")


def check(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return that it took too long."""
    return [f"resuming took more than {options.limit} s"] if result["seconds"] > options.limit else []


def write_job(work: Path, rows: int) -> Path:
    """Write a recipe and its rows, one a partition."""
    model = make_tiny_bert(work / "model", layers=2)
    with (work / "rows.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"id": row, "text": f"the small cat sleeps {row}"}) + "\n" for row in range(rows))
    document = {
        "daskinfer": 1,
        "name": "resume",
        "workspace": str(work),
        "model": {"checkpoint": str(model), "options": {"max_length": 32}},
        "input": {"url": str(work / "rows.jsonl"), "partition_rows": 1},
        "output": {"url": str(work / "out.parquet"), "keep": ["id"]},
        "pipeline": {"stages": 2},
    }
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps(document))
    return recipe


def interrupt(recipe: Path) -> None:
    """Run until something is committed, and stop as Ctrl-C does."""

    def stop(progress: Progress) -> None:
        if progress.phase == "running" and progress.rows_done:
            raise KeyboardInterrupt

    try:
        api.run(Recipe.model_validate_json(recipe.read_text()), watch=stop)
    except Interrupted:
        return
    sys.exit("the job ended before it was interrupted")


def fill(commits: Path, partitions: int) -> None:
    """Put a record for every partition, and the indices that a driver keeps of them."""
    output = commits.parents[2]
    there = {int(path.stem): path for path in commits.glob("*.json")}
    one = CommitRecord.model_validate_json(next(iter(there.values())).read_bytes())
    records = [CommitRecord.model_validate_json(path.read_bytes()) for path in there.values()]
    for number in range(partitions):
        if number not in there:
            path = one.path.replace(f"{one.partition:08d}", f"{number:08d}")
            record = one.model_copy(update={"partition": number, "path": path})
            (commits / f"{number:08d}.json").write_bytes(canonical_json(record.model_dump(mode="json")))
            records.append(record)
            # The same file under another name: a job that is resumed asks whether every committed part is there.
            (output / path).hardlink_to(output / one.path)
    indexed = len(records) - len(records) % INDEX_RECORDS - INDEX_RECORDS // 2
    for start in range(0, indexed, INDEX_RECORDS):
        some = records[start : min(start + INDEX_RECORDS, indexed)]
        write_index(str(commits), one.job, tabulate(map(CommitDigest.of, some)))


def time_resume(recipe: Path, first: Path) -> float:
    """Return the seconds from typing the command to the commit of the first partition that has none."""
    command = [sys.executable, "-m", "daskinfer", "run", str(recipe), "--json"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while not first.exists():
            if job.poll() is not None:
                sys.exit(f"the job ended with {job.returncode} before it had committed anything")
            time.sleep(0.05)
        seconds = time.monotonic() - began
        job.terminate()
    return seconds
