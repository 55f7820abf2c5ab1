"""Pictures of the architecture, drawn from the code's own imports.

``python -m daskinfer.testing.architecture docs/explanation/architecture.md`` puts them between the page's marks.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

PACKAGE = "daskinfer"
FOLDERS = ("runtime", "storage", "models")
TASKS = ("read_rows", "encode", "run_stage", "commit_partition")
"""Functions of `daskinfer.graphs.tasks` that a row goes through, in this order."""
_HOLDERS = ("context", "loaded")
_HOME = Path(__file__).resolve().parent.parent
_MARK = "<!-- drawn: {} -->\n"
_END = "<!-- end of the picture -->\n"


def read_modules() -> dict[str, Path]:
    """Return every module of the package, and its file.

    Examples
    --------
    >>> read_modules()["daskinfer.storage.objects.urls"].name
    'urls.py'
    """
    modules = {}
    for folder in [_HOME, *(path for path in _HOME.iterdir() if path.is_dir())]:
        for path in folder.resolve().glob("*.py") if folder == _HOME else folder.resolve().rglob("*.py"):
            parts = [] if folder == _HOME else [folder.name]
            relative = path.relative_to(folder.resolve()).with_suffix("")
            modules[".".join([PACKAGE, *parts, *relative.parts]).removesuffix(".__init__")] = path
    return modules


def read_imports(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return each module, and the modules of the package that it imports, for type checkers only too.

    Examples
    --------
    >>> modules = read_modules()
    >>> read_imports({name: modules[name] for name in ("daskinfer.ids", "daskinfer.spec.snapshot")})
    {'daskinfer.ids': set(), 'daskinfer.spec.snapshot': {'daskinfer.ids'}}
    """
    found = {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{name.name}" for name in node.names} & modules.keys()
                names |= inner or {node.module}
            elif isinstance(node, ast.Import):
                names |= {name.name for name in node.names}
        found[module] = (names & modules.keys()) - {module}
    return found


def draw_imports(imports: Mapping[str, Iterable[str]], prefix: str) -> str:
    """Return a Mermaid picture of what the parts of a package import, without what follows from the rest.

    Parameters
    ----------
    imports
        Module -> modules that it imports.
    prefix
        The package whose parts are drawn.

    Examples
    --------
    >>> print(draw_imports({"a.x": {"a.y", "a.z"}, "a.y": {"a.z"}, "a.z": set()}, "a"))
    ```mermaid
    flowchart TD
        x --> y
        y --> z
    ```
    """

    def part_of(module: str) -> str | None:
        return module.removeprefix(f"{prefix}.").partition(".")[0] if module.startswith(f"{prefix}.") else None

    edges: dict[str, set[str]] = {}
    for module, others in imports.items():
        part = part_of(module)
        if part is not None and not part.startswith("__"):
            edges.setdefault(part, set()).update(
                other for each in others if (other := part_of(each)) is not None and other != part
            )
    lines = [
        f"    {part} --> {other}"
        for part, others in sorted(edges.items())
        for other in sorted(others)
        if not any(_reaches(edges, between, other) for between in others - {other})
    ]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def draw_row() -> str:
    """Return a Mermaid picture of a row's way: the tasks that it goes through, and whose functions each of them calls.

    Examples
    --------
    >>> draw_row().splitlines()[:2]
    ['```mermaid', 'flowchart LR']
    """
    module = f"{PACKAGE}.graphs.tasks"
    tree = ast.parse(Path(str(import_module(module).__file__)).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    homes = {
        name.asname or name.name: f"{node.module}.{name.name}".removeprefix(f"{PACKAGE}.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE)
        for name in node.names
    }
    lines = ["    input[(input)] --> read_rows"]
    for task, following in zip(TASKS, (*TASKS[1:], "output[(output)]"), strict=True):
        called = _list_calls(task, functions, homes)
        label = "<br>".join([f"<b>{task}</b>", *called])
        lines += [f'    {task}["{label}"] --> {following}']
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def draw_all() -> dict[str, str]:
    """Return every picture by its name."""
    imports = read_imports(read_modules())
    folders = {folder: draw_imports(imports, f"{PACKAGE}.{folder}") for folder in FOLDERS}
    return {"floors": draw_imports(imports, PACKAGE), "row": draw_row(), **folders}


def put_pictures(text: str) -> str:
    """Return a page with every picture drawn anew between its marks."""
    for name, picture in draw_all().items():
        before, begin, rest = text.partition(_MARK.format(name))
        _, end, after = rest.partition(_END)
        if not end:
            raise ValueError(f"the page lacks the marks of the picture {name!r}")
        text = f"{before}{begin}{picture}\n{end}{after}"
    return text


def _reaches(edges: Mapping[str, set[str]], begin: str, end: str) -> bool:
    waiting, seen = [begin], set()
    while waiting:
        part = waiting.pop()
        if part == end:
            return True
        if part not in seen:
            seen.add(part)
            waiting += edges.get(part, ())
    return False


def _list_calls(task: str, functions: Mapping[str, ast.FunctionDef], homes: Mapping[str, str]) -> list[str]:
    """Return the imported functions that a task calls, its own helpers' too, in the order in which they are met."""
    found: list[str] = []
    for node in ast.walk(functions[task]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in functions and name != task:
                found += _list_calls(name, functions, homes)
            elif (
                name in homes and name.islower() and homes[name].partition(".")[0] in ("models", "planning", "storage")
            ):
                found.append(homes[name])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # What a worker's view of the job holds: shards, transports, the sink.
            called = re.sub(r"\[.*?\]", "", ast.unparse(node.func))
            if called.partition(".")[0] in _HOLDERS and called.count(".") <= 2:
                found.append(called)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(put_pictures(page.read_text()))
