"""What Hypothesis draws from."""

from __future__ import annotations

from hypothesis import strategies as st

from daskinfer.spec.rows import Fault

KINDS: st.SearchStrategy[Fault] = st.sampled_from(["raised", "hung", "killed"])
