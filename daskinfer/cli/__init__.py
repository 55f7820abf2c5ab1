"""The command line: parse, call the api, print. Every command loads what it needs when it runs."""

from __future__ import annotations

from daskinfer.cli.app import main

__all__ = ["main"]
