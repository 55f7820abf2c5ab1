"""A process that sleeps at any step of a change, and wakes when its output is another job's, changes nothing there."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskinfer.errors import DaskinferError, IntegrityError, OutputOwned
from daskinfer.ids import make_nonce
from daskinfer.storage.objects import create_if_absent, filesystem
from daskinfer.storage.objects.filesystem import find_files, find_filesystem, read_bytes
from daskinfer.storage.objects.urls import is_local, join_url
from daskinfer.storage.outputs import fence as fences
from daskinfer.storage.outputs.commit_log import CommitLog
from daskinfer.storage.outputs.fence import Fence
from daskinfer.storage.outputs.formats import make_sink
from daskinfer.storage.outputs.owner import Owner, claim, confirm
from daskinfer.storage.outputs.reading import open_output
from daskinfer.storage.outputs.sink import OutputLayout, Sink
from daskinfer.testing.contracts.sinks import FIELDS, METADATA, PARTITION_ROWS, ROWS, make_part, make_record
from daskinfer.testing.stress.campaigns import campaign_size

FORMATS = ("zarr", "parquet", "jsonl")
FS_CALLS = ("pipe_file", "rm_file", "rm", "info", "cat_file", "ls", "find", "call_s3", "exists")
OS_CALLS = ("link", "replace", "rename", "mkdir", "unlink", "rmdir", "open")


class Sleeper(threading.Thread):
    """Somebody who does something, and sleeps before one of the calls that he makes of a store."""

    def __init__(self, act: Callable[[], object], step: int) -> None:
        super().__init__(daemon=True)
        self.act, self.step = act, step
        self.calls = 0
        self.asleep, self.wake = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.act()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error
        finally:
            self.asleep.set()

    def tick(self) -> None:
        if self.calls == self.step:
            self.asleep.set()
            assert self.wake.wait(180)
        self.calls += 1


def _tick() -> None:
    thread = threading.current_thread()
    if isinstance(thread, Sleeper):
        thread.tick()


class _Steps:
    """A filesystem each of whose calls is a step."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in FS_CALLS:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            _tick()
            return found(*args, **kwargs)

        return call


@contextmanager
def steps() -> Iterator[None]:
    """Let every call of a store within the context be a step at which a `Sleeper` may sleep."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OS_CALLS:
            real = getattr(os, name)

            def call(*args: Any, real: Any = real, **kwargs: Any) -> Any:
                _tick()
                return real(*args, **kwargs)

            patch.setattr(os, name, call)

        def find(url: str) -> tuple[Any, str]:
            found, path = find_filesystem(url)
            return _Steps(found), path

        patch.setattr(filesystem, "find_filesystem", find)
        yield


def owner_of(job: str) -> Owner:
    return Owner(job=job, request=job, snapshot=f"sha256:{job}", created="2026-01-01T00:00:00+00:00")


def layout_of(job: str, rows: int = ROWS) -> OutputLayout:
    return OutputLayout(job, FIELDS[:1], {}, PARTITION_ROWS, rows, METADATA | {"daskinfer_snapshot": job})


def open_sink(url: str, format: str, job: str, rows: int = ROWS) -> Sink:
    return make_sink(url, format, layout_of(job, rows))


def commit(sink: Sink, number: int, job: str, refused: tuple[int, ...] = ()) -> None:
    part = make_part(number, refused, shift=float(ord(job[0])))
    record = make_record(part, sink.write(part))
    sink.commit(record.model_copy(update={"job": job, "snapshot": f"sha256:{job}"}))


def take_over(url: str, format: str, job: str, former: str) -> Sink:
    claim(url, owner_of(job), owner_of(former))
    sink = open_sink(url, format, job)
    sink.discard()
    sink.create()
    return sink


def finish(sink: Sink, job: str) -> None:
    for number in range(3):
        commit(sink, number, job, (1,) if number == 1 else ())
    sink.seal({})


def check(url: str, format: str, job: str) -> None:
    """Make sure that an output is one job's, whole, and nothing else."""
    output = open_output(url)
    assert output.layout.job == job
    for number in range(3):
        found = output.read(number)
        wanted = make_part(number, (1,) if number == 1 else (), shift=float(ord(job[0])))
        assert (found.arrays["embedding"] == wanted.arrays["embedding"]).all()
        assert len(found.rejects) == len(wanted.rejects)
    if format == "zarr":
        assert f'"daskinfer_job": "{job}"'.encode() in read_bytes(join_url(url, "zarr.json"))


def files_of(url: str) -> dict[str, bytes]:
    """Return the files of an output that its readers see."""
    return {
        name: read_bytes(join_url(url, name))
        for name in find_files(url)
        if not name.startswith(("_daskinfer/owner", "_daskinfer/commits", "_daskinfer/work"))
    }


def steps_of(act: Callable[[], object]) -> int:
    """Return how many steps something takes."""
    counter = Sleeper(act, -1)
    with steps():
        counter.start()
        counter.join(180)
    if counter.error is not None:
        raise counter.error
    return counter.calls


def begin(url: str, format: str, what: str) -> Callable[[], object]:
    """Let job `a` come to where it is about to do something; return that."""
    claim(url, owner_of("a"), None)
    sink = open_sink(url, format, "a")
    if what == "discard":
        Fence(url, "a").create(join_url(url, "part-00000000.parquet"), b"old")
        return sink.discard
    if what == "create":
        return sink.create
    sink.create()
    if what == "seal":
        for number in range(3):
            commit(sink, number, "a", (1,) if number == 1 else ())
        return lambda: sink.seal({})

    if what == "write again":  # an attempt before it has left other bytes, without a commit
        sink.write(make_part(1, (1, 2)))

    def write() -> None:
        confirm(url, "a")  # as a worker does
        commit(sink, 1, "a", (1,))

    return write


def play(url: str, format: str, what: str, step: int, late: bool) -> None:
    """Let job `a` sleep at a step of what it does, and wake once job `b` has half filled the output, or sealed it."""
    sleeper = Sleeper(begin(url, format, what), step)
    with steps():
        sleeper.start()
        assert sleeper.asleep.wait(180)
        sink = take_over(url, format, "b", "a")
        if not late:
            commit(sink, 0, "b")
            sleeper.wake.set()
            sleeper.join(180)
        finish(sink, "b")
        before = files_of(url)
        sleeper.wake.set()
        sleeper.join(180)
    assert not sleeper.is_alive()
    assert files_of(url) == before, what
    check(url, format, "b")
    error = sleeper.error
    assert error is None or isinstance(error, DaskinferError), error


def place(store: str, tmp_path: Path) -> str:
    return join_url(store, make_nonce()) if not is_local(store) else str(tmp_path / make_nonce())


WHAT = ("write", "write again", "create", "seal", "discard")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("what", WHAT)
def test_whoever_sleeps_at_any_step_on_disk(tmp_path: Path, format: str, what: str) -> None:
    many = steps_of(begin(str(tmp_path / "steps"), format, what))
    assert many > 3 or (what == "create" and format != "zarr")
    chosen = sorted(random.Random(f"{what} {format}").sample(range(many), min(many, campaign_size(5, many))))
    for step in chosen:
        play(str(tmp_path / f"{step}"), format, what, step, late=step % 2 == 0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("what", WHAT)
def test_whoever_sleeps_at_any_step_in_memory(tmp_path: Path, format: str, what: str) -> None:
    many = steps_of(begin(f"memory://{make_nonce()}", format, what))
    for step in sorted(random.Random(1).sample(range(many), min(many, campaign_size(5, many)))):
        url, locked = f"memory://{make_nonce()}", create_if_absent.MEMORY_LOCK
        with pytest.MonkeyPatch.context() as patch:
            # Of what happens in one step nothing can sleep in the middle.
            patch.setattr(create_if_absent, "MEMORY_LOCK", _Awake(locked))
            play(url, format, what, step, late=step % 2 == 0)


class _Awake:
    """A lock that keeps its holder awake."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()
        thread = threading.current_thread()
        if isinstance(thread, Sleeper):
            thread.calls -= 10**6

    def __exit__(self, *words: object) -> None:
        thread = threading.current_thread()
        if isinstance(thread, Sleeper):
            thread.calls += 10**6
        self._lock.release()


@pytest.mark.s3
@pytest.mark.parametrize("format", FORMATS)
def test_whoever_sleeps_at_any_step_on_s3(s3_url: str, format: str) -> None:
    for what in ("write", "seal"):
        many = steps_of(begin(join_url(s3_url, make_nonce()), format, what))
        for step in sorted(random.Random(2).sample(range(many), campaign_size(2, many))):
            play(join_url(s3_url, make_nonce()), format, what, step, late=step % 2 == 0)


@settings(max_examples=campaign_size(10, 500))
@given(st.sampled_from(FORMATS), st.sampled_from(WHAT), st.integers(0, 200), st.booleans())
def test_random_schedules(
    tmp_path_factory: pytest.TempPathFactory, format: str, what: str, step: int, late: bool
) -> None:
    play(str(tmp_path_factory.mktemp("o") / "out"), format, what, step, late)


@pytest.mark.parametrize("format", FORMATS)
def test_the_old_check_is_found(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at the owner and then to write where the output is: what a sleeper does between the two counts."""

    def create(self: Fence, url: str, data: bytes) -> bool:
        self.confirm()
        return create_if_absent.create(url, data)

    def replace(self: Fence, url: str, data: bytes) -> None:
        self.confirm()
        filesystem.replace_bytes(url, data)

    monkeypatch.setattr(fences.Fence, "create", create)
    monkeypatch.setattr(fences.Fence, "replace", replace)
    many = steps_of(begin(str(tmp_path / "steps"), format, "write again"))
    for step in range(many):
        try:
            play(str(tmp_path / f"{step}"), format, "write again", step, late=False)
        except (AssertionError, IntegrityError):
            return
    raise AssertionError("whoever only looks before he writes was not found")


def test_a_later_driver_of_the_same_job_stops_what_an_earlier_one_has_begun(tmp_path: Path) -> None:
    url, target = str(tmp_path / "out"), str(tmp_path / "out" / "part-00000000.jsonl")
    claim(url, owner_of("a"), None)
    many = 0
    for what in ("replace", "remove"):
        for step in range(200):
            (tmp_path / "out" / "part-00000000.jsonl").write_bytes(b"first")
            now = [1]

            def is_over(now: list[int] = now) -> None:
                if now[0] != 1:
                    raise DaskinferError("a newer driver has begun")

            early = Fence(url, "a", 1, is_over)
            act = (
                (lambda early=early: early.replace(target, b"late"))
                if what == "replace"
                else (lambda early=early: early.remove(target))
            )
            sleeper = Sleeper(act, step)
            with steps():
                sleeper.start()
                assert sleeper.asleep.wait(180)
                if sleeper.calls != step:  # it ended before
                    sleeper.join(180)
                    break
                now[0] = 2
                later = Fence(url, "a", 2)
                later.sweep()
                later.replace(target, b"second")
                sleeper.wake.set()
                sleeper.join(180)
            many += 1
            assert read_bytes(target) == b"second", (what, step)
    assert many > 8


def test_a_worker_whose_output_was_taken_says_so(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    write = begin(url, "zarr", "write")
    sink = open_sink(url, "zarr", "a")
    finish(take_over(url, "zarr", "b", "a"), "b")
    for act in (write, sink.create, lambda: sink.seal({}), sink.discard, lambda: commit(sink, 1, "a")):
        with pytest.raises((OutputOwned, IntegrityError)):
            act()
    check(url, "zarr", "b")
    assert not (tmp_path / "out" / "_daskinfer" / "work").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_what_killed_writers_leave_is_swept(tmp_path: Path, format: str) -> None:
    url = str(tmp_path / "out")
    claim(url, owner_of("a"), None)
    left = tmp_path / "out" / "_daskinfer" / "work" / "a" / "0001-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "new").write_bytes(b"half")
    stray = tmp_path / "out" / "part-00000099.jsonl"
    sink = take_over(url, format, "b", "a")
    assert not left.exists()
    stray.write_bytes(b"{}\n")
    (tmp_path / "out" / "_quarantine").mkdir(exist_ok=True)
    (tmp_path / "out" / "_quarantine" / "part-00000002.jsonl").write_bytes(b"{}\n")
    other = tmp_path / "out" / "_daskinfer" / "commits" / "a"
    other.mkdir(parents=True)
    (other / "00000000.json").write_bytes(b"{}")
    finish(sink, "b")
    assert not stray.exists() and not other.exists()
    assert [path.name for path in (tmp_path / "out" / "_quarantine").iterdir()] == ["part-00000001.jsonl"]
    assert not (tmp_path / "out" / "_daskinfer" / "work").exists()
    check(url, format, "b")


def test_a_manifest_that_came_too_late_is_replaced(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    claim(url, owner_of("a"), None)
    sink = take_over(url, "jsonl", "b", "a")
    (tmp_path / "out" / "_MANIFEST.json").write_text('{"job": "a", "parts": []}')
    finish(sink, "b")
    check(url, "jsonl", "b")


def test_records_of_another_job_are_never_written_through(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    claim(url, owner_of("a"), None)
    claim(url, owner_of("b"), owner_of("a"))
    part = make_part(0)
    sink = open_sink(str(tmp_path / "beside"), "jsonl", "a")
    record = make_record(part, sink.write(part)).model_copy(update={"job": "a"})
    with pytest.raises(OutputOwned, match="was taken over by job b; job a stops"):
        CommitLog(url, layout_of("a")).commit(record)
