"""Every interleaving of the protocol, with a crash at any step; and the mistakes that it was made to rule out."""

from __future__ import annotations

import pytest

from tests.storage.registry.protocol import (
    Collector,
    Job,
    Model,
    Mover,
    Publisher,
    Reaper,
    Syncer,
    Violation,
    explore,
)

pytestmark = pytest.mark.late


def collectors(bug: str = "", count: int = 2) -> tuple[Collector, ...]:
    return tuple(Collector(f"collector {number}", bug) for number in range(count))


MODELS = {
    "jobs and collectors": Model((Job("job 1"), Job("job 2"), *collectors())),
    "an alias moves": Model((Mover("mover"), Job("job"), *collectors())),
    "jobs are taken for dead": Model((Job("job 1"), Job("job 2"), *collectors()), suspicious=True),
    "publish with a base": Model((Publisher("publisher"), Reaper("reaper of publish"), Job("job"), *collectors())),
    "publish is taken for dead": Model(
        (Publisher("publisher"), Reaper("reaper of publish"), *collectors()), suspicious=True
    ),
    "sync": Model((Syncer("sync"), Reaper("reaper of sync"), *collectors()), suspicious=True),
    "two syncs": Model(
        (Syncer("sync"), Syncer("sync2"), Reaper("reaper of sync"), *collectors(count=1)), suspicious=True
    ),
}
BUGS = {
    "check-then-lock": Model((Job("job", "check-then-lock"), *collectors(count=1))),
    "gc-without-lock-list": Model((Job("job"), *collectors("gc-without-lock-list", 1))),
    "dedupe-without-base-lock": Model((Publisher("publisher", "dedupe-without-base-lock"), *collectors(count=1))),
    "references-before-sweep": Model((Publisher("publisher"), *collectors("references-before-sweep", 1))),
    "sync-does-not-look": Model((Syncer("sync", "sync-does-not-look"), *collectors(count=1))),
    "second-sync-does-not-look": Model(
        (Syncer("sync"), Syncer("sync2", "sync-does-not-look"), Reaper("reaper of sync")), suspicious=True
    ),
    "base-lock-expires": Model((Publisher("publisher"), *collectors(count=1)), suspicious=True, base_locks_expire=True),
}


def test_no_order_of_steps_and_no_crash_does_harm() -> None:
    states = {name: explore(model) for name, model in MODELS.items()}
    print(f"{sum(states.values()):,} states: {states}")
    assert min(states.values()) > 1_000


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_with_more_of_everyone() -> None:
    crowd = (Job("job 1"), Job("job 2"), Job("job 3"), *collectors(count=3))
    both = (Publisher("publisher"), Reaper("reaper of publish"), Syncer("sync"), *collectors())
    states = [explore(Model(crowd)), explore(Model(both, suspicious=True))]
    print(f"{sum(states):,} states: {states}")
    assert min(states) > 100_000


@pytest.mark.parametrize("bug", BUGS)
def test_every_planted_bug_is_found(bug: str) -> None:
    with pytest.raises(Violation) as found:
        explore(BUGS[bug])
    print(found.value)
