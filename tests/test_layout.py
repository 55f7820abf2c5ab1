"""The house stands as drawn: packages, links, guards and sizes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"graphs": "../graphs", "storage": "../storage"}
CODE = [ROOT / name for name in ("daskinfer", "graphs", "storage")]
PYTHON_FOLDERS = [*CODE, ROOT / "tests", ROOT / "benchmarks", ROOT / "recipes"]
MOST_LINES = 400


def python_files() -> list[Path]:
    # Path.rglob does not enter links, so nothing is met twice.
    return sorted(path for folder in PYTHON_FOLDERS for path in folder.rglob("*.py"))


@pytest.mark.parametrize("name", LINKS)
def test_top_level_folder_refuses_to_be_a_package_of_its_own(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import daskinfer.{name}" in done.stderr


def test_every_package_is_declared() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = []
    for folder in CODE:
        prefix = "daskinfer" if folder.name == "daskinfer" else f"daskinfer.{folder.name}"
        for init in folder.rglob("__init__.py"):
            found.append(".".join([prefix, *init.parent.relative_to(folder).parts]))
    assert sorted(found) == sorted(settings["packages"])


@pytest.mark.parametrize(("name", "target"), LINKS.items())
def test_links_are_committed_as_relative_links(name: str, target: str) -> None:
    assert str((ROOT / "daskinfer" / name).readlink()) == target
    if (ROOT / ".git").exists():
        listing = ["git", "ls-files", "--stage", f"daskinfer/{name}"]
        listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert listed.startswith("120000 ")


def test_import_is_light() -> None:
    script = "import sys, daskinfer; print(*sorted({'torch', 'distributed', 'zarr', 'dask'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert lengths, "no Python files found"
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_nothing_is_left_to_do_and_no_module_is_a_drawer() -> None:
    marker = re.compile(r"#.*\b(T[O]DO|F[I]XME)\b")
    unfinished = [str(path.relative_to(ROOT)) for path in python_files() if marker.search(path.read_text())]
    drawers = [str(path.relative_to(ROOT)) for path in python_files() if path.stem in {"utils", "helpers", "misc"}]
    assert unfinished == []
    assert drawers == []


def test_constraints_pin_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalise(line.partition("==")[0]) for line in lines if "==" in line}
    names = {normalise(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]) for requirement in wanted}
    assert names - pinned - {"daskinfer"} == set()


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_environments_ask_for_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    elsewhere = {"torch": "pytorch"}  # conda-forge's name
    for name in ("environment.yml", "environment-dev.yml", "recipe.yaml"):
        text = (ROOT / "conda" / name).read_text()
        for requirement in project["dependencies"]:
            library, minimum = requirement.split(">=")
            line = f"- {elsewhere.get(library, library)} >={minimum}"
            assert line in text, f"conda/{name} lacks `{line}`"


def test_wheel_holds_one_package_and_all_of_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    source = tmp_path / "source"
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        # A copy, for a build leaves build/ and egg-info behind, and what lies there from before would go in.
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        top_level = next(name for name in names if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["daskinfer"]
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"daskinfer"}
    wanted = set()
    for folder in CODE:
        prefix = "daskinfer" if folder.name == "daskinfer" else f"daskinfer/{folder.name}"
        wanted |= {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "daskinfer/py.typed" in names
