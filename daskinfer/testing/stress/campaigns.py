"""How long a randomised test runs: a short turn every day, a campaign by flag (`pytest --campaign`)."""

from __future__ import annotations

import os

VARIABLE = "DASKINFER_CAMPAIGN"
"""Set by the flag, so that child processes and parallel test workers know."""


def campaign_size(short: int, long: int) -> int:
    """Return how many examples, runs or schedules a test tries: `long` in a campaign, else `short`.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {VARIABLE: "1"}):
    ...     campaign_size(short=10, long=1000)
    1000
    """
    return long if os.environ.get(VARIABLE) else short
