"""The command line as its own process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import daskinfer
from daskinfer.cli.failure import _recognise
from daskinfer.errors import Interrupted

ROOT = str(Path(daskinfer.__file__).parents[1])
HEAVY = ["torch", "distributed", "dask", "zarr", "fsspec", "pyarrow", "numpy", "pydantic", "rich", "jinja2"]

# The real api runs jobs; this one only waits, to be interrupted.
WAITING = """
import sys, time
from daskinfer import api
from daskinfer.spec.job.record import Progress
def run(recipe, *, fresh, join, watch, command):
    watch(Progress(phase="running", job="j", rows_total=10, rows_done=4, busy=(0.5,)))
    if "quick" not in recipe.name:
        time.sleep(600)
    raise RuntimeError("a bug")
api.run = run
from daskinfer.cli import main
main(prog_name="daskinfer")
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT, **more}


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=environment()
    )


def test_import_and_help_load_nothing_heavy() -> None:
    look = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python("-c", f"import daskinfer; {look}").stdout == "[]\n"
    helped = f"from daskinfer.cli import main; main(['--help'], standalone_mode=False); {look}"
    assert python("-c", helped).stdout.splitlines()[-1] == "[]"


def test_a_recipe_is_checked_without_the_heavy_libraries(folder: Path) -> None:
    heavy = [name for name in HEAVY if name not in ("pydantic", "numpy")]
    code = (
        "import sys; from daskinfer.spec.recipe.loader import load_recipe; load_recipe('recipe.yaml');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert python("-c", code, cwd=folder).stdout == "[]\n"


def test_public_names_are_sorted_and_known() -> None:
    assert sorted(daskinfer.__all__) == daskinfer.__all__
    assert daskinfer.load_recipe.__module__ == "daskinfer.spec.recipe.loader"
    assert daskinfer.__version__.count(".") == 2
    assert dir(daskinfer) == daskinfer.__all__
    assert not hasattr(daskinfer, "nosuch")


def test_the_module_runs(folder: Path) -> None:
    assert python("-m", "daskinfer", "--help").returncode == 0
    schema = python("-m", "daskinfer", "schema")
    assert json.loads(schema.stdout)["type"] == "object"
    bad = python("-m", "daskinfer", "run", "recipe.yaml", "--set", "nam=x", cwd=folder)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: --set nam=x: nam: unknown key. Did you mean 'name'?\n")
    assert "\x1b" not in bad.stderr


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m daskinfer schema | head -c 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=environment())
    assert found.stderr == ""


def test_sigint_ends_with_130_and_the_way_back(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "run", "recipe.yaml", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "embed-news: job j, 10 rows\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "daskinfer run recipe.yaml --json" in err
    assert "Traceback" not in err
    found = json.loads(out)
    assert (found["code"], found["job"], found["rows_out"]) == (130, "j", 4)


# A library whose import takes long, and which makes something else of an interrupt, as compiled ones do.
SLOW = """
import pathlib, time
pathlib.Path("importing").touch()
try:
    time.sleep(600)
except BaseException as error:
    raise ImportError("failed to import") from error
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("library", ["click", "pydantic", "distributed"])
def test_a_signal_while_libraries_are_imported(folder: Path, library: str, number: int) -> None:
    (folder / f"slow/{library}").mkdir(parents=True)
    (folder / f"slow/{library}/__init__.py").write_text(SLOW)
    more = {"PYTHONPATH": f"{folder / 'slow'}{os.pathsep}{ROOT}"}
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started the tests in the background wants no signals heard")
    process = subprocess.Popen(
        [sys.executable, "-m", "daskinfer", "run", "recipe.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(**more),
    )
    deadline = time.monotonic() + 120
    while not (folder / "importing").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[0] == "error: interrupted"
    assert "Traceback" not in err and "bug" not in err


def test_what_a_library_made_of_an_interrupt_is_one() -> None:
    error = ImportError("failed to import")
    error.__cause__ = KeyboardInterrupt()
    assert isinstance(_recognise(error), Interrupted)
    assert not isinstance(_recognise(ImportError("no such module")), Interrupted)


def on_a_terminal(folder: Path, **more: str) -> str:
    """Return what `run` writes to a terminal before it fails."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "run", "recipe.yaml", "--set", "name=quick"],
        stdout=other,
        stderr=other,
        cwd=folder,
        env=environment(TERM="xterm-256color", COLUMNS="100", **more),
    )
    os.close(other)
    text = b""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # Linux says EIO when the other side has closed
            break
        text += chunk
    os.close(main)
    assert process.wait(timeout=120) == 1
    return text.decode()


def test_a_terminal_gets_colour_unless_it_says_no(folder: Path) -> None:
    coloured = on_a_terminal(folder, NO_COLOR="")
    assert "4 of 10 rows" in coloured
    assert "\x1b[36m" in coloured
    assert "this is a bug in daskinfer: RuntimeError: a bug" in coloured
    plain = on_a_terminal(folder, NO_COLOR="1")
    assert "4 of 10 rows" in plain
    assert "\x1b[36m" not in plain
    assert "\x1b[31m" not in plain
