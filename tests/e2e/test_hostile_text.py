"""Text that is made to deceive is planted wherever it may come from; then all that is shown and written is searched for it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from daskinfer import api
from tests.e2e.command import Ended, call
from tests.e2e.conftest import Bench

pytestmark = pytest.mark.late

# Redraws the line above, names a window, turns the direction of what follows, ends a line and begins one of its own.
EVIL = (
    "\x1b[1A\x1b[2K\x1b[31m\x1b]0;T\x07\x9b2J\u202egnp\u2066\u200f\rdone\nerror: planted\x85<script>alert(1)</script>"
)
FILE = EVIL.replace("/", "|")
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
OWN = re.compile(r"\x1b\[(1|2|[1-9];?3?[0-7]?|0)?m")


def find_raw(text: str) -> set[str]:
    """Return what is hidden in a text, or begins a line that none of ours wrote."""
    planted = {"line"} if re.search("^(error: planted|done\nerror)", text, re.MULTILINE) else set()
    return set(HIDDEN.findall(text)) | planted


class Page(HTMLParser):
    """A page's tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def write_classifier(folder: Path, tiny: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(tiny, num_labels=2, id2label={0: f"no{EVIL}", 1: f"yes{EVIL}"})
    config.num_hidden_layers = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)


@pytest.mark.timeout(600)  # twenty commands
def test_no_text_from_outside_is_obeyed(bench: Bench, scheduler: str, tmp_path: Path) -> None:
    write_classifier(tmp_path / "model", bench.model)
    api.publish("evil", str(tmp_path / "model"), registry=str(bench.folder / "work/registry"), alias="prod")
    data = bench.folder / "data"
    data.mkdir()
    rows = [{"text": f"the cat {n}", f"id{EVIL}": EVIL} for n in range(20)]
    lines = [*map(json.dumps, rows), json.dumps({"text": None, f"id{EVIL}": EVIL}), '{"' + EVIL.replace("\n", " ")]
    (data / f"a{FILE}.jsonl").write_text("\n".join(lines))
    changes: dict[str, Any] = {
        "cluster__address": scheduler,
        "placement__requires": {"TWO": 1},
        "errors": {"max_rows": 5},
    }
    changes |= {"model__checkpoint": "evil@prod", "model__task": "classify", "pipeline__stages": 1}
    changes |= {"input__url": str(data), "input__format": "jsonl", "output__keep": [f"id{EVIL}"]}
    bench.write_recipe(**changes, output__url=str(bench.folder / "out.jsonl"))
    said: dict[str, str] = {}
    wrong: dict[str, Ended] = {}

    def type_in(*words: str, code: int = 0) -> str:
        ended = call(*words, cwd=bench.folder)
        what = " ".join(words)[:60]
        said[what] = ended.out + ended.err
        if ended.code != code:
            wrong[what] = ended
        return ended.out

    type_in("validate", "recipe.yaml")
    told = type_in("run", "recipe.yaml", "--json", "--log-file", "log.jsonl", "--log-format", "json")
    job = json.loads(told)["job"]
    type_in("run", "recipe.yaml", "--log-file", "log.txt")
    for command in ("status", "report", "verify"):
        type_in(command, job)
    type_in("jobs")
    type_in("retry", job, "--log-file", "log.txt")
    type_in("report", job, "--html", "page.html")
    for words in (["list"], ["show", "evil@prod"], ["history", "evil", "prod"], ["locks"], ["verify", "evil@prod"]):
        type_in("checkpoint", *words, "--registry", "work/registry")
    type_in("run", "recipe.yaml", "--set", f"input.columns.text={json.dumps('none' + EVIL)}", code=2)
    type_in("validate", "recipe.yaml", "--set", "output.keep=[nothing]", code=2)
    (data / f"b{FILE}.parquet").write_bytes(b"none")
    type_in("validate", "recipe.yaml", "--set", "input.format=parquet", code=2)

    assert wrong == {}
    assert {what: raw for what, text in said.items() if (raw := find_raw(text))} == {}
    page = (bench.folder / "page.html").read_text()
    assert "script" not in Page(page).tags
    for name in ("log.jsonl", "log.txt"):
        assert not find_raw((bench.folder / name).read_text()), name
    records = [json.loads(line) for line in (bench.folder / "log.jsonl").read_text().splitlines()]
    assert all(record["time"] for record in records)
    quarantined = next((bench.folder / "out.jsonl").rglob("_quarantine/*.jsonl")).read_text()
    assert not find_raw(quarantined)
    assert len([json.loads(line) for line in quarantined.splitlines()]) == 2
