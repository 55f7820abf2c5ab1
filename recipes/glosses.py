"""Write the demo's input: one sentence a line, from WordNet's glosses or else from text that this machine has.

Run it as `python recipes/glosses.py data/glosses.jsonl --rows 24000`. The same call writes the same bytes, and a
file that already holds them is left untouched, so that a finished job stays finished.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEM = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
PACKAGE = "wordnet-base"
SENTENCE = re.compile(r"(?<=[.!?;:])\s+")


def main() -> None:
    """Find text and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="file to write, e.g. data/glosses.jsonl")
    parser.add_argument("--rows", default="24000", help="how many, spread evenly over WordNet, or `all`")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for WordNet's files")
    options = parser.parse_args()
    if options.rows != "all" and not (options.rows.isdigit() and int(options.rows)):
        parser.error(f"--rows must be a positive number or `all`, not {options.rows!r}")
    folder = find_wordnet(options.work)
    if folder is None:
        print(f"no {PACKAGE} here and no way to get it: using text that ships with this machine", file=sys.stderr)
        rows = list(read_machine())
    else:
        rows = list(read_glosses(folder))
    if options.rows != "all":
        rows = spread(rows, int(options.rows))
    written = write_rows(options.output, rows)
    print(f"{options.output}: {len(rows)} rows{'' if written else ', already there'}", file=sys.stderr)


def find_wordnet(work: Path) -> Path | None:
    """Return a folder with WordNet's data files, fetched into `work` without root where apt allows; None without."""
    unpacked = work / PACKAGE / SYSTEM.relative_to("/")
    for folder in (SYSTEM, unpacked):
        if all((folder / f"data.{part}").is_file() for part in PARTS):
            return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        if not download(Path(scratch)):
            return None
        package = next(Path(scratch).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, work / PACKAGE], check=True)
    return unpacked


def download(folder: Path) -> bool:
    """Fetch the package into `folder`; as root also after refreshing apt's lists, which containers come without."""

    def apt_get(*words: str) -> bool:
        command = ["apt-get", "--quiet", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0

    refreshable = os.geteuid() == 0
    return apt_get("download", PACKAGE) or (refreshable and apt_get("update") and apt_get("download", PACKAGE))


def read_glosses(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, gloss) of every synset, e.g. `dog.n.02084071`."""
    for part in PARTS:
        with (folder / f"data.{part}").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(" "):  # the licence
                    continue
                synset, gloss = line.split("|", 1)
                offset, _, kind, _, lemma = synset.split(" ", 5)[:5]
                yield f"{lemma.partition('(')[0]}.{kind}.{offset}", gloss.strip()


def read_machine() -> Iterator[tuple[str, str]]:
    """Yield (id, sentence) from licences, read-me files and Python's own docstrings."""
    seen: set[str] = set()
    library = Path(os.__file__).parent
    sources = [
        *sorted(Path("/usr/share/common-licenses").glob("*")),
        *sorted(Path("/usr/share/doc").glob("*/README*")),
        *sorted(path for path in library.rglob("*.py") if not {"site-packages", "test"} & set(path.parts)),
    ]
    for path in sources:
        number = 0
        for paragraph in re.split(r"\n\s*\n", read_text(path)):
            for sentence in SENTENCE.split(" ".join(paragraph.split())):
                if len(sentence.split()) < 5 or len(sentence) > 1000 or sentence in seen:
                    continue
                seen.add(sentence)
                yield f"{path}:{number}", sentence
                number += 1


def read_text(path: Path) -> str:
    """Return the prose of a file: docstrings of Python source, the whole of anything else; empty where unreadable."""
    try:
        data = path.read_bytes() if path.is_file() else b""
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        text = data.decode()
    except (OSError, ValueError, EOFError):
        return ""
    return "\n\n".join(re.findall(r'"""(.+?)"""', text, re.DOTALL)) if path.suffix == ".py" else text


def spread(rows: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return `count` rows at even distances, all of them where there are fewer."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def write_rows(path: Path, rows: Iterable[tuple[str, str]]) -> bool:
    """Write jsonl; return False where the file holds these bytes already, as its modification time is its identity."""
    data = "".join(json.dumps({"id": key, "text": text}, ensure_ascii=False) + "\n" for key, text in rows).encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return True


if __name__ == "__main__":
    main()
