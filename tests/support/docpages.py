"""Pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


DOCS = ROOT / "docs"


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])


FENCE = re.compile(r"```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


EXITS = re.compile(r"<!-- exits with (\d+) -->\s*\Z")


NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*\Z")


SAVED = re.compile(r"`([\w./-]+)`:\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    code: int
    save_as: str | None
    runs: bool


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    blocks = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        exits, saved = EXITS.search(before), SAVED.search(before)
        blocks.append(
            Block(
                language=fence[1],
                text=fence[2],
                line=before.count("\n") + 1,
                code=int(exits[1]) if exits else 0,
                save_as=saved[1] if saved else None,
                runs=not NOT_RUN.search(before),
            )
        )
    return blocks
