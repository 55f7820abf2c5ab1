"""Thresholds that a candidate's outputs must keep, measured against the current version's on the same rows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from daskinfer.spec.section import DescribedSection

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Gate(DescribedSection):
    """When a candidate passes; a threshold that is null is not looked at.

    Examples
    --------
    >>> Gate(min_rows=1000, min_cosine=None).max_nan
    0.0
    """

    tolerance: Positive = 1e-3
    """Floats are close up to this difference times max(1, |current value|)."""
    max_changed: Share | None = None
    """Rows of a column that may be neither equal nor close, as a share of all; what is not a float must be equal."""
    max_label_changes: Share | None = 0.05
    """Rows that may get another label, as a share of all."""
    max_label_drift: Positive | None = 0.1
    """Population stability index of a label column: 0.1 is a slight, 0.25 a major shift of how often labels come."""
    max_length_drift: Positive | None = 0.1
    """Change of the mean length of texts, and of the mean of `num_tokens`, relative to the current one."""
    max_logprob_drift: Share | None = 0.1
    """Kolmogorov-Smirnov statistic of `logprob`: the largest gap between the two cumulative distributions."""
    max_nan: Share | None = 0.0
    """Rows that may have NaN or infinity where the current version has a number, as a share of all."""
    max_quarantined: Share | None = 0.001
    """Rows that only the candidate may refuse, as a share of all that one of the two did."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = 0.9
    """Least mean cosine between the two versions' vectors of a row."""
    min_rows: Annotated[int, Field(ge=1)] = 100
    """Fewest rows that both must have; fewer show nothing."""
