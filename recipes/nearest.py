"""Show the rows of an embedding job that are nearest to some queries.

The queries are embedded by a second, tiny run of the same recipe, on the very snapshot that embedded the rows:

    daskinfer run recipes/embed_text.yaml --json > work/embed-text.json
    python recipes/nearest.py recipes/embed_text.yaml work/embed-text.json "an animal that barks"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

QUERIES = ("an animal that barks", "a feeling of great happiness", "a machine that computes")


def main() -> None:
    """Embed the queries and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, help="the recipe that embedded the rows")
    parser.add_argument("result", type=Path, help="what `daskinfer run RECIPE --json` printed")
    parser.add_argument("queries", nargs="*", help="texts to look up")
    parser.add_argument("--count", type=int, default=5, help="rows to show for each query")
    options = parser.parse_args()
    queries = options.queries or list(QUERIES)
    result = json.loads(options.result.read_text().splitlines()[-1])
    rows = zarr.open_group(result["output"], mode="r")
    vectors = np.asarray(rows["embedding"])
    texts, names = np.asarray(rows["text"]), np.asarray(rows["id"])
    console = Console(highlight=False)
    for query, scores in zip(
        queries, embed(queries, options.recipe, result["snapshot"], result["job"]) @ vectors.T, strict=True
    ):
        table = Table(title=f"nearest to “{query}”", title_justify="left", show_header=False, box=None)
        table.add_column(justify="right", width=4)
        table.add_column(style="bold", no_wrap=True, width=22)
        table.add_column(no_wrap=True, width=max(20, console.width - 32))
        for best in np.argsort(-scores)[: options.count]:
            table.add_row(f"{scores[best]:.2f}", shorten(str(names[best])), str(texts[best]))
        console.print(table, "")
    console.print(summarise(result), soft_wrap=True)


def embed(queries: list[str], recipe: Path, snapshot: str, job: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the queries' vectors of length 1, shape (queries, dim); asked twice, the finished job is used again."""
    # The job's id stands for the code too: a later version of it may not go on with what an earlier one has written.
    name = "queries-" + hashlib.sha256("\n".join([job, *queries]).encode()).hexdigest()[:12]
    source = Path("data") / f"{name}.jsonl"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(queries)]
        source.write_text("".join(rows))
    settings = {
        "name": name,
        "model.checkpoint": f"minilm@{snapshot}",
        "input.url": source,
        "output.url": Path("results") / f"{name}.zarr",
    }
    command: list[Any] = [Path(sys.executable).with_name("daskinfer"), "run", recipe, "--json"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    output = json.loads(done.stdout.splitlines()[-1])["output"]
    return np.asarray(zarr.open_group(output, mode="r")["embedding"])


def shorten(name: str) -> str:
    """Return the word of `dog.n.02084071`, and any other id as it is."""
    return re.sub(r"\.[a-z]\.\d{8}$", "", name).replace("_", " ")


def summarise(result: dict[str, Any]) -> str:
    """Return the closing lines: rows, rate and where the report lies."""
    report = json.loads(Path(result["report"]).with_suffix(".json").read_text())
    rate = report["rows_this_run"] / report["running_seconds"]
    return f"{result['rows_out']:,} rows, {rate:,.0f} rows/s\nreport: {result['report']}"


if __name__ == "__main__":
    main()
