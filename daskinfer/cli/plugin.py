"""The same commands as `dask infer`, found by Dask's own command line through the `dask_cli` entry points."""

from __future__ import annotations

from daskinfer.cli.app import make_group

infer = make_group("infer")
