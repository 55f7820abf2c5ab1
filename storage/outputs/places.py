"""Names of what is in every output beside its data."""

from __future__ import annotations

MANIFEST = "_MANIFEST.json"
RECORDS = "_daskinfer"
QUARANTINE = "_quarantine"
STAGED = "generations"
"""Where the parts of a job that may change its snapshot wait for the seal."""
RETRIES = "retries"
"""Where the merged parts of a retry wait, and what every retry of a job did."""
COMMITS = "commits"
WORK = "work"
"""Where what a job writes in an output on a local path begins."""
