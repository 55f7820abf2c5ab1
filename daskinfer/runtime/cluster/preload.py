"""Imports that are made once, so that forked workers need not repeat them; see `forking.py`."""

import gc

gc.disable()  # a tenth of the time goes to looking for garbage among what is kept
import distributed  # noqa: F401

import daskinfer.graphs.tasks
import daskinfer.models.execution.stage
import daskinfer.runtime.cluster.process_setup  # noqa: F401
from daskinfer.source import digest_source

# Kept with the code that it describes: by the time that a worker is forked the files may be those of another version.
digest_source()
# Memory is shared until somebody writes to it, and collecting garbage writes to every object.
gc.collect()
gc.freeze()
gc.enable()
