from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daskinfer.errors import CheckpointError, Conflict, SnapshotGone, YankedVersion
from daskinfer.ids import digest_of
from daskinfer.storage.objects.slotlog import Slot
from daskinfer.storage.registry import aliases, locks
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.yanking import yank
from daskinfer.testing.fixtures.checkpoints import make_registry
from daskinfer.testing.stress.campaigns import campaign_size

MOVER = """
import sys
from daskinfer.errors import Conflict
from daskinfer.storage.registry import aliases
from daskinfer.storage.registry.catalog import Registry
registry, (target, moves) = Registry(sys.argv[1]), sys.argv[2:]
won, sequence = 0, registry.aliases("mini")["prod"].sequence
while won < int(moves):
    try:
        head = aliases.set_alias(registry, "mini", "prod", target, expect=sequence + 1, reason=f"{target} {won}")
    except Conflict:
        sequence = registry.alias_log("mini", "prod").head().sequence
        continue
    sequence, won = head.sequence, won + 1
    print(sequence)
"""


def test_history_tells_every_move(any_store: str) -> None:
    registry = make_registry(any_store)
    gate = {"rows": 1000, "drift": 0.01}
    aliases.set_alias(registry, "mini", "prod", "v1", expect=3, reason="safer", gate=gate)
    set_alias(registry, "mini", "canary", "prod")
    aliases.unset_alias(registry, "mini", "prod", reason="retired")
    history = registry.alias_history("mini", "prod")
    moves = [(move.sequence, move.operation, move.version) for move in history]
    assert moves == [(0, "set", 1), (1, "set", 2), (2, "set", 3), (3, "set", 1), (4, "unset", None)]
    assert (history[3].reason, history[3].gate, history[3].publish) == ("safer", digest_of(gate), None)
    assert history[0].publish is not None and history[0].gate is None
    assert {alias: head.version for alias, head in registry.aliases("mini").items()} == {"canary": 1}
    with pytest.raises(CheckpointError, match="no alias 'prod'") as unset:
        registry.resolve("mini@prod")
    assert unset.value.hint and "canary" in unset.value.hint
    with pytest.raises(CheckpointError, match="no alias 'prod'"):
        aliases.unset_alias(registry, "mini", "prod")
    assert aliases.set_alias(registry, "mini", "prod", "v2").sequence == 5
    assert registry.resolve("mini@prod").version == 2


def test_a_conflict_says_who_came_first(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    aliases.set_alias(registry, "mini", "prod", "v1", expect=3)
    message = r"mini@prod was moved to v1 by \S+@\S+ at 20\S+ \(move 3\)"
    with pytest.raises(Conflict, match=message):
        aliases.set_alias(registry, "mini", "prod", "v2", expect=3)
    with pytest.raises(Conflict, match=message):
        aliases.unset_alias(registry, "mini", "prod", expect=3)
    with pytest.raises(Conflict, match=message):
        aliases.roll_back(registry, "mini", "prod", expect=3)
    with pytest.raises(Conflict, match="never moved"):
        aliases.set_alias(registry, "mini", "new", "v2", expect=1)
    with pytest.raises(CheckpointError, match="reads as a version"):
        set_alias(registry, "mini", "v7", "v2")
    with pytest.raises(CheckpointError, match="it names the versions"):
        set_alias(registry, "mini", "versions", "v2")
    assert len(registry.alias_history("mini", "prod")) == 4
    assert list((tmp_path / "locks").glob("*/*")) == []


def test_rolling_back_goes_further_every_time(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    moves = [aliases.roll_back(registry, "mini", "prod", reason="drift") for _ in range(2)]
    assert [(move.version, move.rollback_of, move.restores) for move in moves] == [(2, 2, 1), (1, 3, 0)]
    with pytest.raises(CheckpointError, match="no earlier target"):
        aliases.roll_back(registry, "mini", "prod")
    assert aliases.roll_back(registry, "mini", "prod", to=2).version == 3
    with pytest.raises(CheckpointError, match="has no move 9"):
        aliases.roll_back(registry, "mini", "prod", to=9)
    with pytest.raises(CheckpointError, match="no alias 'prd'") as wrong:
        aliases.roll_back(registry, "mini", "prd")
    assert wrong.value.hint == "Did you mean prod?"
    assert [move.version for move in registry.alias_history("mini", "prod")] == [1, 2, 3, 2, 1, 3]


def test_an_unset_alias_is_rolled_back_to_where_it_pointed(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    aliases.unset_alias(registry, "mini", "prod")
    assert aliases.roll_back(registry, "mini", "prod").version == 3
    with pytest.raises(CheckpointError, match=r"move 3 .* unset it"):
        aliases.roll_back(registry, "mini", "prod", to=3)


def test_no_move_leads_to_what_was_yanked_or_deleted(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    first, second, _ = registry.versions("mini")
    yank(registry, "mini", "v2", "bad labels")
    for target in ("v2", second.snapshot):
        with pytest.raises(YankedVersion, match=r"v2 was yanked by .*: bad labels"):
            aliases.set_alias(registry, "mini", "next", target)
    with pytest.raises(YankedVersion, match="v2 was yanked"):
        aliases.roll_back(registry, "mini", "prod")
    for operation in ("condemn", "sweep"):
        registry.life_log(first.snapshot).append({"op": operation})
    with pytest.raises(SnapshotGone):
        aliases.roll_back(registry, "mini", "prod", to=0)
    assert registry.alias_names("mini") == ["prod"]
    assert registry.resolve("mini@prod").sequence == 2


def test_a_move_holds_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry(tmp_path)
    append, seen = authorised_writes.append, []

    def look_then_append(*arguments: Any) -> Slot:
        seen.append([holder.purpose for holder in locks.list_holders(registry, registry.versions("mini")[0].snapshot)])
        return append(*arguments)

    monkeypatch.setattr(authorised_writes, "append", look_then_append)
    aliases.set_alias(registry, "mini", "prod", "v1")
    aliases.roll_back(registry, "mini", "prod")
    aliases.roll_back(registry, "mini", "prod", to=3)
    assert seen == [["alias"], [], ["alias"]]
    assert locks.list_holders(registry, registry.versions("mini")[0].snapshot) == []


def test_processes_that_move_an_alias_make_one_history(tmp_path: Path) -> None:
    writers, moves = campaign_size(4, 8), campaign_size(50, 125)
    registry = make_registry(tmp_path, versions=writers)
    command = [sys.executable, "-c", MOVER, str(tmp_path)]
    movers = [
        subprocess.Popen([*command, f"v{n + 1}", str(moves)], stdout=subprocess.PIPE, env={**os.environ})
        for n in range(writers)
    ]
    won = [list(map(int, mover.communicate(timeout=400)[0].split())) for mover in movers]
    assert [mover.returncode for mover in movers] == [0] * writers
    history = registry.alias_history("mini", "prod")
    assert [move.sequence for move in history] == list(range(writers + writers * moves))
    for number, sequences in enumerate(won, start=1):
        # Each writer's moves are all there, in its order, and nobody else's record stands where it was told it won.
        assert [history[sequence].reason for sequence in sequences] == [f"v{number} {turn}" for turn in range(moves)]
        assert {history[sequence].version for sequence in sequences} == {number}
