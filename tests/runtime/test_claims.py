from __future__ import annotations

from collections.abc import Collection

from daskinfer.errors import ClaimLost
from daskinfer.runtime.protocol.actions import (
    Action,
    ClaimBlocks,
    Commit,
    Fail,
    IncidentRecord,
    Prepare,
    Recovered,
    Release,
    Seal,
    Submit,
)
from daskinfer.runtime.protocol.events import (
    BlocksClaimed,
    Committed,
    MicrobatchDone,
    Prepared,
    ShardAck,
    ShardLoaded,
    TaskFailed,
    Tick,
)
from daskinfer.runtime.state_machine.limits import Limits
from daskinfer.runtime.state_machine.machine import StateMachine
from daskinfer.runtime.state_machine.partitions.claim_policy import (
    HELP_SECONDS,
    IDLE_SECONDS,
    SURVEY_SECONDS,
    ClaimPolicy,
    choose_block,
)
from daskinfer.runtime.state_machine.partitions.tracker import PartitionTracker
from daskinfer.spec.job.commit import CommitRecord, StageTrail
from daskinfer.testing.fixtures.plans import make_worker
from tests.support.factories import SNAPSHOT, SOURCE, make_machine

# Which block


def choose(heads: dict[int, tuple[str, ...]], gone: Collection[str] = (), idle: float = 0.0) -> object:
    return choose_block(heads, dict.fromkeys(heads, 1), "me", gone, idle)


def test_free_blocks_come_first_in_order() -> None:
    assert choose({4: (), 2: (), 0: ("other",)}) == (2, ("me",))


def test_those_of_members_that_are_gone_are_free() -> None:
    assert choose({0: ("other",), 1: ("dead",)}, {"dead"}) == (1, ("me",))
    assert choose({0: ("dead", "dead too")}, {"dead", "dead too"}) == (0, ("me",))


def test_the_living_are_left_alone_for_a_while() -> None:
    assert choose({0: ("other",), 1: ("me",)}, idle=HELP_SECONDS - 1) == (1, ("me",))
    assert choose({0: ("other",)}, idle=HELP_SECONDS - 1) is None
    assert choose({0: ("other",)}, idle=HELP_SECONDS) == (0, ("other", "me"))


def test_help_goes_where_most_is_left_and_two_are_enough() -> None:
    heads = {0: ("a",), 1: ("b",), 2: ("c", "d"), 3: ("e",)}
    assert choose_block(heads, {0: 2, 1: 5, 2: 9, 3: 5}, "me", set(), HELP_SECONDS) == (1, ("b", "me"))
    assert choose({2: ("c", "d")}, idle=HELP_SECONDS) is None
    assert choose({2: ("c", "d")}, {"d"}, HELP_SECONDS) == (2, ("c", "me"))


def test_what_it_claimed_and_does_not_know_of_is_claimed_anew() -> None:
    assert choose({0: ("me",)}) is None, "it is busy with it"
    assert choose({0: ("me",)}, idle=0.5) == (0, ("me",))


# When to ask


def make_claims(committed: Collection[int] = ()) -> tuple[ClaimPolicy, PartitionTracker]:
    claims = ClaimPolicy("me", 10, committed)
    return claims, PartitionTracker(4, claims, 10 - len(committed))


def test_it_asks_once_and_then_by_need() -> None:
    claims, work = make_claims(committed=[0])
    assert claims.go_on(0.0, is_running=False, is_busy=False) == [ClaimBlocks(is_wanted=False)]
    assert claims.go_on(99.0, is_running=True, is_busy=False) == [], "the answer has not come"
    claims.take(BlocksClaimed(), work, work.abandon)
    assert claims.go_on(100.0, is_running=True, is_busy=False) == [ClaimBlocks(is_wanted=True, idle=1.0)]
    claims.take(BlocksClaimed((0, 1, 2)), work, work.abandon)
    assert list(claims) == [(None, 1), (None, 2)], "what is committed is left out"
    assert claims.go_on(100.1, is_running=True, is_busy=True) == [ClaimBlocks(is_wanted=True)], (
        "more, while there is some"
    )
    claims.take(BlocksClaimed((3,)), work, work.abandon)
    assert claims.go_on(100.2, is_running=True, is_busy=True) == []
    assert claims.go_on(100.1 + SURVEY_SECONDS, is_running=True, is_busy=True) == [ClaimBlocks(is_wanted=False)]


def test_it_asks_less_often_where_there_is_nothing() -> None:
    claims, work = make_claims()
    claims.go_on(0.0, is_running=True, is_busy=True)
    claims.take(BlocksClaimed(), work, work.abandon)
    assert claims.go_on(IDLE_SECONDS / 2, is_running=True, is_busy=False) == []
    again = [ClaimBlocks(is_wanted=True, idle=IDLE_SECONDS / 2)]
    assert claims.go_on(IDLE_SECONDS, is_running=True, is_busy=False) == again


def test_what_is_in_work_is_not_started_again() -> None:
    claims, work = make_claims()
    claims.take(BlocksClaimed((3, 4, 5)), work, work.abandon)
    assert work.pump(0, may_start=True) == [Prepare(3, 0), Prepare(4, 0)]
    claims.take(BlocksClaimed((3, 4, 5, 6)), work, work.abandon)
    assert list(claims) == [(None, 5), (None, 6)]


# In the driver's logic


def make_member(partitions: int = 4, rejects: int = 0) -> StateMachine:
    """Return the core of a member that is about to load its one stage."""
    core = make_machine(
        partitions, replicas=(1,), limits=Limits(rejects=rejects), claims=ClaimPolicy("me", partitions, [])
    )
    core.start([make_worker("w")])
    return core


def load(core: StateMachine) -> list[Action]:
    return core.handle(ShardLoaded(ShardAck(0, "w", SNAPSHOT, SOURCE, 1, 0.1, "cpu")), 0.0)


def make_running(partitions: int = 4, rejects: int = 0) -> StateMachine:
    """Return the core of a member that has asked for its first partitions."""
    core = make_member(partitions, rejects)
    assert load(core)[-1] == ClaimBlocks(is_wanted=True)
    return core


def record(partition: int, member: str = "me", rejects: int = 0) -> CommitRecord:
    return CommitRecord(
        job="job",
        snapshot=SNAPSHOT,
        partition=partition,
        epoch=1,
        member=member,
        rows_in=10,
        rows_out=10 - rejects,
        rows_quarantined=rejects,
        tokens=1,
        padded_tokens=1,
        microbatches=(),
        digest="",
        path="",
        trail=(StageTrail(stage=0, microbatches=1, compute=1, receive=0, send=0, workers=(f"worker of {member}",)),),
    )


def others(*partitions: int, rejects: int = 0) -> tuple[CommitRecord, ...]:
    return tuple(record(number, "other", rejects) for number in partitions)


def ours(*partitions: int) -> tuple[CommitRecord, ...]:
    trail = (StageTrail(stage=0, microbatches=1, compute=1, receive=0, send=0, workers=("w",)),)
    return tuple(record(number).model_copy(update={"trail": trail}) for number in partitions)


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions]


def test_a_member_starts_what_it_has_claimed() -> None:
    core = make_running()
    actions = core.handle(BlocksClaimed((2, 3)), 1.0)
    assert [action.partition for action in actions if isinstance(action, Prepare)] == [2, 3]
    assert ClaimBlocks(is_wanted=True) in actions


def test_it_ends_when_all_is_committed_whoever_did_it() -> None:
    core = make_running()
    core.handle(BlocksClaimed((2,)), 1.0)
    core.handle(Prepared(2, 1), 1.1)
    assert Seal not in kinds(core.handle(BlocksClaimed((), others(0, 1, 3)), 2.0))
    assert Commit in kinds(core.handle(MicrobatchDone(2, 0), 2.1))
    assert Seal in kinds(core.handle(Committed(ours(2)[0]), 2.2))
    assert core.handle(Tick(), 3.0) == []


def test_what_another_has_committed_is_dropped_in_mid_work() -> None:
    core = make_running()
    core.handle(BlocksClaimed((2, 3)), 1.0)
    core.handle(Prepared(2, 3), 1.1)
    actions = core.handle(BlocksClaimed((), others(0, 1, 2)), 2.0)
    assert Release(2) in actions
    again = core.handle(Prepared(3, 4), 2.1)
    assert Submit(3, (0, 1, 2, 3), 0) in again, "the window has room for what was dropped"
    assert core.claims is not None
    assert core.claims.find_new(BlocksClaimed((), others(2))) == []


def test_a_commit_counts_once() -> None:
    """The listing may tell of a commit of our own before, or after, the task that made it."""
    core = make_running()
    core.handle(BlocksClaimed((0, 1)), 1.0)
    for number in (0, 1):
        core.handle(Prepared(number, 0), 1.1)
    assert Release(0) in core.handle(Committed(ours(0)[0]), 1.2)
    assert Release(1) in core.handle(BlocksClaimed((), ours(0, 1)), 1.3)
    assert Seal in kinds(core.handle(BlocksClaimed((), others(2, 3)), 1.4))


def test_rows_that_others_refuse_count() -> None:
    core = make_running(rejects=1)
    assert Fail not in kinds(core.handle(BlocksClaimed((), others(0, rejects=1)), 1.0))
    assert Fail in kinds(core.handle(BlocksClaimed((), others(1, rejects=1)), 2.0))


def test_a_lost_claim_is_given_up() -> None:
    core = make_running()
    core.handle(BlocksClaimed((0, 1)), 1.0)
    core.handle(Prepared(0, 0), 1.1)
    actions = core.handle(TaskFailed("commit", 0, 0, ClaimLost("taken over")), 1.2)
    assert kinds(actions)[:2] == [IncidentRecord, Release]
    assert Fail not in kinds(actions)
    again = core.handle(BlocksClaimed((0,)), 1.3)
    assert Prepare(0, 0) in again, "whoever took it over is gone"


def test_a_member_that_is_still_loading_ends_with_the_others() -> None:
    core = make_member(partitions=2)
    assert ClaimBlocks(is_wanted=False) in core.handle(Tick(), 0.0)
    assert kinds(core.handle(BlocksClaimed((), others(0, 1)), 1.0)) == [Seal]


def test_trouble_with_storage_is_told_and_corrected() -> None:
    core = make_running()
    assert core.handle(BlocksClaimed(trouble="503"), 1.0) == [
        IncidentRecord("storage-refused", "503", 0),
        ClaimBlocks(True, idle=1.0),
    ]
    assert core.handle(BlocksClaimed(trouble="503"), 2.0) == [ClaimBlocks(True, idle=2.0)], "once is enough"
    actions = core.handle(BlocksClaimed((0,)), 3.0)
    assert Recovered(0, 2.0) in actions
    assert Prepare(0, 0) in actions
