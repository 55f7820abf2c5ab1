from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daskinfer.errors import MissingEvent
from daskinfer.ids import canonical_json, sha256_of, shorten
from daskinfer.spec.registry.trust import AuditEvent, AuditTrail
from daskinfer.storage.objects.filesystem import delete
from daskinfer.storage.objects.naming import name_principal
from daskinfer.storage.objects.urls import join_url
from daskinfer.storage.registry import locks
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.access.audit import read_trail
from daskinfer.storage.registry.access.authorised_writes import Decision
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
from daskinfer.storage.registry.publishing.publish import publish
from daskinfer.testing.contracts.stores import race
from daskinfer.testing.faults.faulty_filesystem import FaultyFS, be_full
from daskinfer.testing.fixtures.checkpoints import make_checkpoint
from daskinfer.testing.stress.campaigns import campaign_size

MOVER = """
import sys
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
for turn in range(int(sys.argv[2])):
    set_alias(Registry(sys.argv[1]), "mini", "prod", f"v{turn % 2 + 1}")
"""

# Dies between the record of an alias move and its event.
CRASHER = """
import os, sys
from daskinfer.storage.registry.access import authorised_writes
from daskinfer.storage.registry.aliases import set_alias
from daskinfer.storage.registry.catalog import Registry
tell = authorised_writes.write_event
def die_before(registry, principal, action, *rest):
    if action == "alias":
        os._exit(9)
    tell(registry, principal, action, *rest)
authorised_writes.write_event = die_before
set_alias(Registry(sys.argv[1]), "mini", "prod", "v1")
"""

ALIAS = "models/mini/aliases/prod"


def make_registry(url: str | Path) -> Registry:
    """Publish two versions, move an alias twice, condemn one and spare it, lock it: 18 events."""
    registry = Registry(str(url))
    for seed in range(2):
        publish(registry, "mini", make_checkpoint(seed), "prod")
    snapshot = registry.resolve("mini@v1").snapshot
    for operation in ("condemn", "live"):
        decision = Decision(registry.url, "collect", f"life/{shorten(snapshot, 64)}")
        authorised_writes.append(decision, registry.life_log(snapshot), {"op": operation})
    locks.take(registry, snapshot, "job-1")
    set_alias(registry, "mini", "prod", "v1")
    return registry


def broken(trail: AuditTrail) -> list[tuple[str, str]]:
    return [(finding.where, finding.what) for finding in trail.broken]


def test_every_decision_is_told(any_store: str) -> None:
    trail = read_trail(make_registry(any_store).url)
    assert trail.findings == ()
    told = [(event.action, event.operation) for event in trail.events]
    begun, lock = ("publish", "begin"), ("lock", None)
    # Every publish locks what it is to become, whether that is there yet or not.
    published = [lock, ("publish", "commit"), ("publish", "publish"), lock, ("alias", "set")]
    collected = [("collect", "condemn"), ("collect", "live")]
    # The second version locks the first, whose blobs it may share.
    assert told == [begun, *published, begun, lock, *published, *collected, lock, lock, ("alias", "set")]
    assert {event.by for event in trail.events} == {name_principal()}
    assert trail.events[-1].resource == ALIAS
    assert trail.events[-1].record == f"{ALIAS}/000000000002.json"
    assert trail.events[0].previous is None and trail.events[0].client


def test_each_principal_has_a_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry(tmp_path)
    for name in ("ann", "bén/../x"):
        monkeypatch.setenv("LOGNAME", name)
        set_alias(registry, "mini", name[:3], "v1") if name == "ann" else set_alias(registry, "mini", "ben", "v2")
    trail = read_trail(registry.url)
    assert trail.findings == ()
    assert [event.by.partition("@")[0] for event in trail.events[-4:]] == ["ann", "ann", "bén/../x", "bén/../x"]
    assert len(list((tmp_path / "audit").iterdir())) == 3


def edit(path: Path, **changes: object) -> None:
    """Change what an event or a record says; an event's checksum is made to fit, as a careful forger would."""
    record = json.loads(path.read_bytes()) | changes
    if "checksum" in record and "checksum" not in changes:
        fields = {key: value for key, value in record.items() if key in AuditEvent.model_fields}
        record["checksum"] = AuditEvent.model_validate(fields).checksum
    path.write_bytes(canonical_json(record))


def copy(source: Path, target: Path, **changes: object) -> None:
    target.write_bytes(source.read_bytes())
    edit(target, **changes)


Tamper = Callable[[Path, Path], object]
"""Called with the registry and the folder of the chain."""

TAMPERING: dict[str, tuple[Tamper, str, str]] = {
    "an event is changed": (
        lambda registry, chain: edit(chain / "000000000004.json", by="eve@x", checksum="sha256:0"),
        "4.json",
        "cannot be trusted: it was changed",
    ),
    "an event is changed with care": (
        lambda registry, chain: edit(chain / "000000000004.json", at="2020-01-01T00:00:00.000+00:00"),
        "5.json",
        "does not follow the one before it",
    ),
    "an event is torn": (
        lambda registry, chain: (chain / "000000000007.json").write_bytes(b"{"),
        "7.json",
        "cannot be trusted: it is no event",
    ),
    "the newest event is changed": (
        lambda registry, chain: edit(chain / "000000000017.json", operation="unset", checksum="sha256:0"),
        "17.json",
        "cannot be trusted",
    ),
    "the newest event is somebody else's": (
        lambda registry, chain: edit(chain / "000000000017.json", by="eve@x"),
        "17.json",
        "is one of eve@x",
    ),
    "an event is deleted": (
        lambda registry, chain: (chain / "000000000009.json").unlink(),
        "9.json",
        "the event is missing",
    ),
    "the first event is deleted": (
        lambda registry, chain: (chain / "000000000000.json").unlink(),
        "0.json",
        "the event is missing",
    ),
    "an event is inserted": (
        lambda registry, chain: copy(
            chain / "000000000017.json", chain / "000000000018.json", record=f"{ALIAS}/000000000003.json"
        ),
        "18.json",
        "does not follow the one before it",
    ),
    "a move is changed": (
        lambda registry, chain: edit(registry / ALIAS / "000000000000.json", by="eve@x"),
        f"{ALIAS}/000000000000.json",
        "the record was changed",
    ),
    "a version is changed": (
        lambda registry, chain: edit(registry / "models/mini/versions/000000000001.json", at="x"),
        "models/mini/versions/000000000001.json",
        "the record was changed",
    ),
    "the newest move is deleted": (
        lambda registry, chain: (registry / ALIAS / "000000000002.json").unlink(),
        f"{ALIAS}/000000000002.json",
        "the record is missing",
    ),
    "a verdict is deleted": (
        lambda registry, chain: next(registry.glob("life/*/000000000000.json")).unlink(),
        "life/",
        "the record is missing",
    ),
    "a lock is changed": (
        lambda registry, chain: edit(next(registry.glob("locks/*/job-1.json")), ttl_seconds=0),
        "locks/",
        "the record was changed",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_found(tmp_path: Path, name: str) -> None:
    registry = make_registry(tmp_path)
    tamper, where, what = TAMPERING[name]
    (chain,) = (tmp_path / "audit").iterdir()
    assert len(list(chain.iterdir())) == 18
    tamper(tmp_path, chain)
    found = broken(read_trail(registry.url))
    assert any(where in place and what in reason for place, reason in found), found


def test_an_inserted_record_is_told_as_what_a_crash_leaves(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    copy(tmp_path / ALIAS / "000000000000.json", tmp_path / ALIAS / "000000000003.json", by="eve@x")
    trail = read_trail(registry.url)
    assert broken(trail) == []
    (warning,) = trail.findings
    assert (warning.where, warning.what) == (ALIAS, "no event tells of 1 record(s): 000000000003.json")


def test_a_decision_that_is_told_twice_is_found(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    (chain,) = (tmp_path / "audit").iterdir()
    previous = sha256_of((chain / "000000000017.json").read_bytes())
    copy(chain / "000000000017.json", chain / "000000000018.json", previous=previous)
    (found,) = read_trail(registry.url).findings
    assert (found.severity, found.where) == ("warning", f"{ALIAS}/000000000002.json")
    assert found.what.startswith("2 events tell of this record: alias by ")


def test_a_crash_before_the_event_is_a_warning_and_no_more(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    code = subprocess.run([sys.executable, "-c", CRASHER, str(tmp_path)], check=False, timeout=180).returncode
    assert code == 9
    assert registry.resolve("mini@prod").sequence == 3
    set_alias(registry, "mini", "prod", "v2")
    trail = read_trail(registry.url)
    assert [(finding.severity, finding.where) for finding in trail.findings] == [("warning", ALIAS)]


def test_a_decision_stands_where_its_event_cannot_be_written() -> None:
    registry = make_registry(f"memory://audit-{os.getpid()}")
    # Writes: the lock, its event, its heartbeat, the move, and then the event of the move.
    with FaultyFS(registry.url, "pipe_file", be_full, after=4), pytest.warns(MissingEvent) as told:
        assert set_alias(registry, "mini", "prod", "v2").sequence == 3
    assert len(told) == 1
    assert str(told[0].message).startswith(f"alias of {ALIAS} is done, but its audit event is missing: no space left")
    trail = read_trail(registry.url)
    assert [(finding.severity, finding.where) for finding in trail.findings] == [("warning", ALIAS)]
    set_alias(registry, "mini", "prod", "v1")
    assert len(read_trail(registry.url).findings) == 1


@pytest.mark.parametrize(
    "record",
    [
        "../victim.json",
        "models/../../victim.json",
        "/etc/passwd",
        "audit",
        "models/\0.json",
        f"models/{300 * 'a'}.json",
    ],
)
def test_an_event_that_names_what_lies_outside_is_not_followed(tmp_path: Path, record: str) -> None:
    registry = make_registry(tmp_path / "registry")
    (tmp_path / "victim.json").write_text("{}")
    (chain,) = (tmp_path / "registry/audit").iterdir()
    edit(max(chain.iterdir()), record=record)
    assert (record, "the record is missing") in [(place, what[:21]) for place, what in broken(read_trail(registry.url))]


def test_a_damaged_end_does_not_stop_the_chain(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    (chain,) = (tmp_path / "audit").iterdir()
    (chain / "000000000017.json").write_bytes(b"not JSON")
    set_alias(registry, "mini", "prod", "v2")
    assert len(list(chain.iterdir())) == 20
    assert [place for place, _ in broken(read_trail(registry.url))] == [f"audit/{chain.name}/000000000017.json"]


def test_a_registry_that_is_made_anew_begins_a_chain(tmp_path: Path) -> None:
    url = str(tmp_path / "registry")
    make_registry(url)
    delete(url, recursive=True)
    make_registry(url)
    trail = read_trail(url)
    assert trail.findings == () and trail.checked == 18


def rewrite(chain: Path, count: int) -> None:
    """Write a chain anew: the first event another one, all others following it, so that it fits together."""
    previous = None
    for number in range(count):
        path = chain / f"{number:012d}.json"
        record = json.loads(path.read_bytes())
        nonce = record.pop("nonce")
        del record["checksum"]
        event = AuditEvent.model_validate(record | {"previous": previous, "client": "forged"})
        data = canonical_json({**event.model_dump(mode="json"), "checksum": event.checksum, "nonce": nonce})
        path.write_bytes(data)
        previous = sha256_of(data)


def test_a_chain_that_is_written_anew_is_found_where_it_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make_registry(tmp_path / "registry")
    (chain,) = (tmp_path / "registry" / "audit").iterdir()
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "auditor"))
    assert read_trail(registry.url).findings == ()
    rewrite(chain, 18)
    (place, reason), *_ = broken(read_trail(registry.url))
    assert place == f"audit/{chain.name}/000000000017.json"
    assert reason.startswith("the event is another one since this machine saw it")
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "a machine that has seen nothing"))
    assert broken(read_trail(registry.url)) == []


def test_a_chain_that_is_cut_is_found_where_it_was_written(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    (chain,) = (tmp_path / "audit").iterdir()
    for number in (16, 17):
        (chain / f"{number:012d}.json").unlink()
    assert any("is gone since this machine saw it" in reason for _, reason in broken(read_trail(registry.url)))
    for path in chain.iterdir():
        path.unlink()
    chain.rmdir()
    assert any("is gone since this machine saw it" in reason for _, reason in broken(read_trail(registry.url)))


def test_reading_and_heartbeats_are_no_decisions(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    before = read_trail(registry.url).checked
    lock = locks.take(registry, registry.resolve("mini@v1").snapshot, "job-1")
    lock.heartbeat()
    lock.release()
    assert read_trail(registry.url).checked == before
    assert read_trail(registry.url).findings == ()


def test_an_audit_during_decisions_finds_nothing_broken(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)

    def act(number: int) -> AuditTrail | None:
        if number == 0:
            return read_trail(registry.url)
        for _ in range(5):
            set_alias(registry, "mini", f"alias-{number}", "v1")
        return None

    trails = [trail for _ in range(3) for trail in race(act, writers=4) if trail is not None]
    assert [broken(trail) for trail in trails] == [[], [], []]
    final = read_trail(registry.url)
    assert final.findings == () and final.checked == 18 + 3 * 3 * 5 * 2


def test_processes_of_one_principal_make_one_chain(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    processes, turns = campaign_size(3, 8), campaign_size(4, 125)
    command = [sys.executable, "-c", MOVER, join_url(registry.url), str(turns)]
    movers = [subprocess.Popen(command) for _ in range(processes)]
    assert [mover.wait(timeout=400) for mover in movers] == [0] * processes
    moves = len(registry.alias_history("mini", "prod"))
    trail = read_trail(registry.url)
    assert moves == 3 + processes * turns
    assert trail.findings == () and trail.checked == 18 + 2 * processes * turns
