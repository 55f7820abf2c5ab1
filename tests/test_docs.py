"""What the documentation says is true: its code runs, its recipes are valid, its tables are complete, its links lead somewhere.

The blocks of a page run in order in one folder; pages under howto/ start from a copy of what the tutorial left behind.
Two comments on the line above a block are understood: `<!-- exits with N -->` and `<!-- not run: REASON -->`. A line that
ends with "`NAME`:" before a yaml block saves it under that name.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import BaseModel

from daskinfer.spec.job.report import Report, StageReport
from daskinfer.spec.recipe.gate import Gate
from daskinfer.spec.recipe.loader import load_recipe
from daskinfer.spec.recipe.schema import Recipe
from tests.support.docpages import DOCS, PAGES, ROOT, read_blocks

LINK = re.compile(r"\]\(([^)#\s]+)(#[\w-]+)?\)")


def run_page(page: Path, folder: Path) -> None:
    # The programs of this environment first, and the package under test, whoever installed what.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    for block in read_blocks(page):
        if block.save_as is not None:
            (folder / block.save_as).write_text(block.text)
        if not block.runs or block.language not in ("bash", "python"):
            continue
        # A file, not a pipe: a killed driver's orphans would keep a pipe open.
        log = folder / "block.log"
        command = ["bash", "-eu", "-o", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        with log.open("w") as stream:
            shell = subprocess.Popen(
                [*command, block.text],
                cwd=folder,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )
            try:
                code = shell.wait()
            finally:
                # What the block left in the background, such as workers that wait for a scheduler that is gone.
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert code == block.code, f"{where} ended with {code}:\n{log.read_text()}"


# A page runs up to thirty commands one after the other; a busy machine takes several seconds to start each.
PAGE_SECONDS = 600


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    run_page(DOCS / "tutorial.md", folder)
    return folder


@pytest.mark.guide
@pytest.mark.timeout(PAGE_SECONDS)
def test_tutorial_runs(after_tutorial: Path) -> None:
    assert (after_tutorial / "results/first.zarr/_MANIFEST.json").is_file()


@pytest.mark.guide
@pytest.mark.timeout(PAGE_SECONDS)
@pytest.mark.parametrize("page", sorted((DOCS / "howto").glob("*.md")), ids=lambda page: page.stem)
def test_howto_runs(page: Path, after_tutorial: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(after_tutorial, folder)
    run_page(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_are_valid(page: Path, tmp_path: Path) -> None:
    for block in read_blocks(page):
        if block.language == "yaml" and block.text.startswith("daskinfer: 1"):
            (tmp_path / "recipe.yaml").write_text(block.text)
            load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [match[1] for match in LINK.finditer(page.read_text()) if "://" not in match[1]]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_reachable_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        waiting += [
            (page.parent / match[1]).resolve() for match in LINK.finditer(page.read_text()) if "://" not in match[1]
        ]
    assert sorted(set(DOCS.rglob("*.md")) - reached) == []


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
        # The keys of a gate are those of `daskinfer compare`, and documented there.
        if inner is None or inner is Gate:
            yield prefix + name
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def test_recipe_reference_is_complete() -> None:
    documented = re.findall(r"^\| `([\w.]+)` \|", (DOCS / "reference/recipe.md").read_text(), re.MULTILINE)
    assert documented == list(leaves(Recipe))


def test_report_reference_is_complete() -> None:
    text = (DOCS / "reference/report.md").read_text()
    names = [*Report.model_fields, *StageReport.model_fields]
    assert [name for name in names if f"`{name}`" not in text] == []


def incident_kinds() -> Iterator[str]:
    for path in (ROOT / "daskinfer/runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", ""))
            if isinstance(node, ast.Call) and name in ("IncidentRecord", "note") and len(node.args) > 1:
                kinds = [each.value for each in ast.walk(node.args[0]) if isinstance(each, ast.Constant)]
                yield from (str(kind) for kind in kinds)


def test_every_kind_of_incident_is_documented() -> None:
    text = (DOCS / "howto/recover.md").read_text()
    kinds = set(incident_kinds())
    assert {"poison", "resumed", "canary"} <= kinds
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in text] == []


def test_exit_codes_are_those_of_the_errors() -> None:
    from daskinfer import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {0} | {value.exit_code for value in classes if issubclass(value, errors.DaskinferError)}
    for page in (ROOT / "README.md", DOCS / "reference/cli.md"):
        rows = re.findall(r"^\| (\d+) \|", page.read_text(), re.MULTILINE)
        assert sorted(map(int, rows)) == sorted(codes), page


def test_every_command_is_documented() -> None:
    import click

    from daskinfer.cli import main

    text = (DOCS / "reference/cli.md").read_text()
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        names = command.list_commands(context) if isinstance(command, click.Group) else [""]
        for inner in names:
            assert f"`daskinfer {name} {inner}".rstrip() in text, f"daskinfer {name} {inner} is not documented"
