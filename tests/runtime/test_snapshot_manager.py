"""What a driver holds in storage, and lets go of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daskinfer.runtime.snapshots import snapshot_manager
from daskinfer.runtime.snapshots.snapshot_manager import SnapshotManager
from daskinfer.spec.job.generation import SnapshotPin


@pytest.mark.parametrize(("verdict", "removed"), [("failed", ["sha256:two"]), (None, [])])
def test_a_candidate_that_failed_is_given_back_by_the_next_driver(
    verdict: str | None, removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own driver died between the verdict and giving it back; without a verdict the trial goes on."""
    first = SnapshotPin(generation=0, snapshot="sha256:one", sequence=1, version=1, scope=0)
    candidate = SnapshotPin(generation=1, snapshot="sha256:two", sequence=2, version=2, scope=1, is_trial=True)
    dropped: set[int] = set()
    known = SimpleNamespace(pins=(first, candidate), current=first, dropped=dropped, owned={})
    found: Any = object.__new__(SnapshotManager)
    found.log = SimpleNamespace(known=known, drop=lambda generation, why: dropped.add(generation))
    found._record = SimpleNamespace(job="job", recipe=SimpleNamespace(consistency=SimpleNamespace(canary=object())))
    found._folder = found._registry = ""
    found._lock = lambda pin: None
    gone: list[str] = []
    report = None if verdict is None else SimpleNamespace(verdict=verdict)
    monkeypatch.setattr(snapshot_manager, "read_gate", lambda folder: report)
    monkeypatch.setattr(snapshot_manager, "tell_verdict", lambda report: "failed")
    monkeypatch.setattr(
        "daskinfer.storage.registry.locks.remove", lambda registry, snapshot, job: gone.append(snapshot)
    )
    assert found.begin() == first
    assert gone == removed
