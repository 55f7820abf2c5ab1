"""The command line: parse, call the api, print. Every command loads what it needs when it runs."""

from __future__ import annotations

import os
from contextlib import nullcontext

from daskinfer.cli.interruption import ending_at_once, is_program

with ending_at_once(lambda: os.write(2, b"error: interrupted\n")) if is_program() else nullcontext():
    from daskinfer.cli.app import main

__all__ = ["main"]
