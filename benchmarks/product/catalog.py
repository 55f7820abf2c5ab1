"""All measures of daskinfer alone, by name."""

from __future__ import annotations

import argparse
from typing import Any, Protocol, cast

from benchmarks.product import encryption, load, memory, overhead, resume


class Measure(Protocol):
    """A module of this folder."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare its own options."""

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return what it found."""

    def show(self, result: dict[str, Any]) -> None:
        """Print it."""

    def check(self, result: dict[str, Any], options: argparse.Namespace) -> list[str]:
        """Return what is worse than its options allow."""


_MODULES = (memory, load, overhead, resume, encryption)
MEASURES = {module.__name__.rpartition(".")[2]: cast(Measure, module) for module in _MODULES}
