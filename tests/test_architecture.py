"""The architecture as the code's own syntax shows it: no circles, small parts, and each part alone changes its state."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from daskinfer.testing.architecture import put_pictures, read_imports, read_modules

ROOT = Path(__file__).resolve().parent.parent
HOMES = {"daskinfer": ROOT / "daskinfer", "daskinfer.graphs": ROOT / "graphs", "daskinfer.storage": ROOT / "storage"}
RUNTIME = ROOT / "daskinfer" / "runtime"
MOST_PARAMETERS = 6
MOST_METHODS = 15
WIDE = {"WorkerAssignment": 18}
"""Classes that have more: the state that all of their methods share would have to be shared by their parts."""
MOST_MODULES = 20


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_no_module_imports_itself_by_way_of_others() -> None:
    left = read_imports(read_modules())
    while free := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def list_classes(folder: Path) -> Iterator[tuple[str, ast.ClassDef]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def test_constructors_of_the_runtime_are_short() -> None:
    long: dict[str, int] = {}
    for where, node in list_classes(RUNTIME):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                count = len(method.args.args) - 1 + len(method.args.kwonlyargs)
                long |= {where: count} if count > MOST_PARAMETERS else {}
    assert long == {}


def test_classes_of_the_runtime_have_few_public_methods() -> None:
    wide: dict[str, int] = {}
    for where, node in list_classes(RUNTIME):
        methods = [
            each.name
            for each in node.body
            if isinstance(each, ast.FunctionDef)
            and not each.name.startswith("_")
            and not any(isinstance(mark, ast.Name) and mark.id == "property" for mark in each.decorator_list)
        ]
        wide |= {where: len(methods)} if len(methods) > WIDE.get(node.name, MOST_METHODS) else {}
    assert wide == {}


def test_each_part_of_the_state_machine_changes_only_its_own_attributes() -> None:
    foreign = []
    for path in sorted((RUNTIME / "state_machine").rglob("*.py")):
        for node in ast.walk(parse(path)):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
                continue
            for target in targets:
                while isinstance(target, ast.Subscript):
                    target = target.value
                # self.part.attribute = ... and self._part.attribute[key] = ...
                if (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Attribute)
                    and isinstance(target.value.value, ast.Name)
                    and target.value.value.id == "self"
                ):
                    foreign.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert foreign == []


def test_folders_are_small() -> None:
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for home in HOMES.values()
        for path in home.rglob("*.py")
        if path.name != "__init__.py"
    )
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_no_test_imports_another_test() -> None:
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests."):
                names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
                found += [f"{path.relative_to(ROOT)}: {name}" for name in names if "test_" in name.rpartition(".")[2]]
    assert found == []


def test_the_pictures_are_those_of_the_imports() -> None:
    page = ROOT / "docs" / "explanation" / "architecture.md"
    assert put_pictures(page.read_text()) == page.read_text(), "make architecture draws them anew"
