"""Examples in docstrings: all of them run, and every public function of the finished packages has one."""

from __future__ import annotations

import ast
import doctest
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

import daskinfer
from daskinfer import redaction
from daskinfer.testing.architecture import read_modules

# Every public function in them, and every public class with an `__init__` of its own, has an example.
FINISHED = (
    "daskinfer.api",
    "daskinfer.errors",
    "daskinfer.graphs.blame",
    "daskinfer.graphs.build",
    "daskinfer.graphs.context",
    "daskinfer.graphs.handoff",
    "daskinfer.graphs.identity",
    "daskinfer.graphs.reporting",
    "daskinfer.graphs.sizes",
    "daskinfer.graphs.task_request",
    "daskinfer.hidden",
    "daskinfer.ids",
    "daskinfer.knobs",
    "daskinfer.logs",
    "daskinfer.models.architecture",
    "daskinfer.models.checkpoints",
    "daskinfer.models.entry",
    "daskinfer.models.execution.device_check",
    "daskinfer.models.execution.device_errors",
    "daskinfer.models.execution.devices",
    "daskinfer.models.execution.offload",
    "daskinfer.models.execution.runner",
    "daskinfer.models.execution.weights",
    "daskinfer.models.folder",
    "daskinfer.models.limits",
    "daskinfer.models.missing_kernels",
    "daskinfer.models.module_state",
    "daskinfer.models.preprocessing",
    "daskinfer.models.proofs",
    "daskinfer.models.remotecode",
    "daskinfer.models.request",
    "daskinfer.models.splitting",
    "daskinfer.models.tasks",
    "daskinfer.models.tensors",
    "daskinfer.models.units",
    "daskinfer.models.unsaved",
    "daskinfer.models.versions",
    "daskinfer.planning",
    "daskinfer.redaction",
    "daskinfer.reports",
    "daskinfer.runtime.cluster.admission",
    "daskinfer.runtime.cluster.background.requests",
    "daskinfer.runtime.cluster.cleanup",
    "daskinfer.runtime.cluster.forking",
    "daskinfer.runtime.cluster.resource_tags",
    "daskinfer.runtime.cluster.restarts",
    "daskinfer.runtime.cluster.scheduler_check",
    "daskinfer.runtime.cluster.scheduler_state",
    "daskinfer.runtime.cluster.scheduler_topics",
    "daskinfer.runtime.cluster.security",
    "daskinfer.runtime.cluster.serialization",
    "daskinfer.runtime.cluster.task_submission",
    "daskinfer.runtime.cluster.worker_calls",
    "daskinfer.runtime.driver",
    "daskinfer.runtime.jobs",
    "daskinfer.runtime.monitoring",
    "daskinfer.runtime.protocol",
    "daskinfer.runtime.snapshots",
    "daskinfer.runtime.state_machine",
    "daskinfer.source",
    "daskinfer.spec",
    "daskinfer.storage.activations",
    "daskinfer.storage.certificates",
    "daskinfer.storage.columns",
    "daskinfer.storage.inputs",
    "daskinfer.storage.jobs",
    "daskinfer.storage.objects",
    "daskinfer.storage.outputs",
    "daskinfer.storage.registry",
    "daskinfer.storage.tensors",
    "daskinfer.testing.contracts",
    "daskinfer.testing.fixtures",
    "daskinfer.testing.models.codedmodels",
    "daskinfer.testing.models.minefield",
    "daskinfer.testing.models.ownmodels",
    "daskinfer.testing.models.reference",
    "daskinfer.testing.models.taskcases",
    "daskinfer.testing.models.tinymodels",
    "daskinfer.testing.models.zoo",
    "daskinfer.testing.models.zoofamilies",
    "daskinfer.testing.servers.servers",
    "daskinfer.testing.stress.campaigns",
    "daskinfer.units",
)
# Whole jobs, checkpoints published with their proof, servers.
LATE = (
    "daskinfer.api.catalog",
    "daskinfer.api.clusters",
    "daskinfer.api.runs",
    "daskinfer.models.checkpoints.checkpoint",
    "daskinfer.models.proofs.outlines",
    "daskinfer.models.proofs.row_proof",
    "daskinfer.models.proofs.score_proof",
    "daskinfer.models.splitting.outlining",
    "daskinfer.models.splitting.skeleton",
    "daskinfer.testing.fixtures.stages",
    "daskinfer.testing.servers.servers",
)

Definition = ast.FunctionDef | ast.ClassDef
MODULES = read_modules()


def list_definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Yield the functions, the classes and their methods, by name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Definition):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def has_example(node: Definition) -> bool:
    return ">>> " in (ast.get_docstring(node) or "")


def needs_example(name: str, node: Definition) -> bool:
    if "." in name or name.startswith("_"):
        return False
    is_made = any(isinstance(inner, ast.FunctionDef) and inner.name == "__init__" for inner in node.body)
    return isinstance(node, ast.FunctionDef) or is_made


def list_modules() -> list[ParameterSet]:
    names = sorted(name for name, path in MODULES.items() if ">>> " in path.read_text())
    return [pytest.param(name, marks=pytest.mark.late if name in LATE else ()) for name in names]


@pytest.mark.parametrize("module", list_modules())
def test_examples_are_true(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", {})
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes most of the time
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    ran: set[str] = set()
    for found in doctest.DocTestFinder(exclude_empty=True).find(import_module(module)):
        if found.examples:
            place = tmp_path / str(len(ran))
            place.mkdir()
            monkeypatch.chdir(place)
            ran.add(found.name.removeprefix(f"{module}."))
            runner.run(found, out=said.append)
    assert not said, "".join(said)
    # doctest passes over what it takes for another module's.
    assert {name for name, node in list_definitions(MODULES[module]) if has_example(node)} <= ran


@pytest.mark.parametrize("package", FINISHED)
def test_every_public_function_has_an_example(package: str) -> None:
    modules = [name for name in MODULES if name == package or name.startswith(f"{package}.")]
    assert modules
    missing = []
    for module in modules:
        definitions = dict(list_definitions(MODULES[module]))  # of overloads, the last one
        missing += [
            f"{module}.{name}"
            for name, node in definitions.items()
            if needs_example(name, node) and not has_example(node)
        ]
    assert missing == []


def test_what_users_import_first_has_an_example() -> None:
    names = [name for name in daskinfer.__all__ if name != "__version__"]
    assert [name for name in names if ">>> " not in (getattr(daskinfer, name).__doc__ or "")] == []


def test_predicates_say_whether() -> None:
    others = re.compile(r"(return|say|tell|check) (whether|true)\b|true if\b", re.IGNORECASE)
    wrong = []
    for module, path in MODULES.items():
        for name, node in list_definitions(path):
            text = ast.get_docstring(node) or ""
            is_bool = isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "bool"
            is_predicate = is_bool and re.search(r"(^|\.)_?(is|has|can|may)_", name)
            if text and (others.match(text) or (is_predicate and not text.startswith("Whether "))):
                wrong.append(f"{module}.{name}: {text.splitlines()[0]}")
    assert wrong == []
