"""Bytes that are not what they should be: each kind of damage is done, noticed, and corrected or refused."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest

from daskinfer import api
from daskinfer.errors import CorruptBlob, InputError, IntegrityError, JobFailed, SnapshotSkew
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.models.tinymodels import make_tiny_bert
from tests.e2e.command import call
from tests.e2e.conftest import Bench, data_bytes, run, write_rows
from tests.e2e.faults import commits, interrupt, once, patched_workers

pytestmark = [pytest.mark.late, pytest.mark.usefixtures("every_event_is_told")]

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = 120


@pytest.fixture
def bench(bench: Bench) -> Bench:
    write_rows(bench.folder / "in.jsonl", ROWS)
    return bench


def small(bench: Bench, name: str = "out.zarr", **changes: Any) -> Any:
    changes = {"pipeline__activations": {"transport": "zarr"}, "input__partition_rows": 16, **changes}
    return bench.recipe(name, **changes)


def results(output: Path) -> list[Path]:
    """Return every file of an output that holds or vouches for a row."""
    return [*output.glob("*/c/*"), *output.glob("_daskinfer/commits/*/*"), *output.glob("_MANIFEST.json")]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# Checkpoints


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip, "is damaged"),
        (Path.unlink, "is gone"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its file is too short"),
    ],
    ids=["flipped", "deleted", "truncated"],
)
def test_a_damaged_blob_stops_the_run_before_a_row(
    bench: Bench, scheduler: str, damage: Callable[[Path], None], what: str
) -> None:
    registry = Registry(str(bench.folder / "work/registry"))
    # The last layer is loaded by stage 1 alone.
    group = registry.manifest(registry.resolve("tiny@prod").snapshot).group("encoder.layer.3")
    blob = Path(registry.url, str(group.blob))
    good = blob.read_bytes()
    damage(blob)
    with pytest.raises(CorruptBlob, match=what) as refusal:
        run(small(bench), scheduler)
    assert str(blob) in str(refusal.value) and f"layer group {group.name} " in str(refusal.value)
    assert refusal.value.exit_code == 1
    assert not results(bench.folder / "out.zarr")
    blob.write_bytes(good)
    assert run(small(bench), scheduler).rows_out == ROWS


@pytest.mark.parametrize("begun", [False, True], ids=["new", "resumed"])
def test_a_damaged_manifest_stops_the_run(bench: Bench, scheduler: str, begun: bool) -> None:
    registry = Registry(str(bench.folder / "work/registry"))
    path = Path(registry.manifest_url(registry.resolve("tiny@prod").snapshot))
    good = path.read_bytes()
    if begun:
        interrupt(small(bench), scheduler)
    before = results(bench.folder / "out.zarr")
    flip(path)
    with pytest.raises(CorruptBlob, match=f"manifest {path} has digest"):
        run(small(bench), scheduler)
    assert results(bench.folder / "out.zarr") == before
    path.write_bytes(good)
    assert (run(small(bench), scheduler).partitions_resumed > 0) == begun


# Activations


def damage_first_chunk(patch: pytest.MonkeyPatch, kind: str, checked: bool) -> None:
    """Damage the first chunk that this worker receives, between its writing and its reading."""
    import time
    from pathlib import Path

    from daskinfer.storage.activations import framing, transports

    receive = transports.ZarrTransport.receive
    pending = [kind]

    def receive_damaged(self: Any, sent: Any, partition: int, microbatch: int) -> Any:
        if pending:
            pending.pop()
            folder = Path(self.url, "c")
            chunk = folder / str(sent.chunk) / "0"
            data = bytearray(chunk.read_bytes())
            if kind == "flipped":
                data[3] ^= 0x80  # the sign of the first number
                chunk.write_bytes(data)
            elif kind == "truncated":
                chunk.write_bytes(data[:-1])
            elif kind == "deleted":
                chunk.unlink()
            else:
                # The worker has one thread, so no chunk beside this one can have been received yet.
                while not (others := [path for path in folder.glob("*/0") if path != chunk]):
                    time.sleep(0.01)
                chunk.write_bytes(others[0].read_bytes())
                others[0].write_bytes(data)
        return receive(self, sent, partition, microbatch)

    patch.setattr(transports.ZarrTransport, "receive", receive_damaged)
    if not checked:
        patch.setattr(framing, "_digest", lambda *identity: "unchecked")


@pytest.mark.parametrize(("kind", "damaged"), [("flipped", 1), ("truncated", 1), ("deleted", 1), ("swapped", 2)])
def test_a_damaged_activation_is_computed_again(bench: Bench, scheduler: str, kind: str, damaged: int) -> None:
    run(small(bench, "calm.zarr"), scheduler)
    with patched_workers(scheduler, damage_first_chunk, kind, True, only=1):
        report = run(small(bench), scheduler)
    assert report.counters["corrupt_activations"] == report.counters["microbatches_recomputed"] == damaged
    assert [incident.kind for incident in report.incidents] == ["corrupt-activation"] * damaged
    assert report.counters["task_failures"] == 0
    assert data_bytes(bench.folder / "out.zarr") == data_bytes(bench.folder / "calm.zarr")


@pytest.mark.parametrize("kind", ["flipped", "swapped"])
def test_without_the_digest_the_same_damage_would_reach_the_output(bench: Bench, scheduler: str, kind: str) -> None:
    run(small(bench, "calm.zarr"), scheduler)
    with (
        patched_workers(scheduler, damage_first_chunk, "none", False, only=0),
        patched_workers(scheduler, damage_first_chunk, kind, False, only=1),
    ):
        report = run(small(bench), scheduler)
    assert report.counters["corrupt_activations"] == 0
    wrong, calm = data_bytes(bench.folder / "out.zarr"), data_bytes(bench.folder / "calm.zarr")
    assert wrong.keys() == calm.keys() and wrong != calm


# Inputs


def test_an_input_that_changes_in_mid_run_stops_it(bench: Bench, scheduler: str) -> None:
    path, output = bench.folder / "in.jsonl", bench.folder / "out.zarr"
    good, times = path.read_bytes(), path.stat()
    recipe = small(bench, pipeline__window=1)
    run(small(bench, "calm.zarr"), scheduler)
    calm = commits(bench.folder / "calm.zarr")
    with pytest.raises(InputError, match=rf"{path} changed while the job ran: it was written again") as failure:
        run(recipe, scheduler, watch=once(32, lambda: path.write_bytes(good.replace(b"cat", b"dog"))))
    assert failure.value.exit_code == 2
    done = commits(output)
    assert 2 <= len(done) < len(calm)
    assert {number: record["digest"] for number, record in done.items()} == {
        number: calm[number]["digest"] for number in done
    }
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(recipe, scheduler).partitions_resumed >= 2
    assert data_bytes(output) == data_bytes(bench.folder / "calm.zarr")


# Snapshots and workers


def read_other_manifest(patch: pytest.MonkeyPatch, other: str) -> None:
    from daskinfer.storage.registry.catalog import Registry

    manifest = Registry.manifest
    patch.setattr(Registry, "manifest", lambda self, snapshot: manifest(self, other))


def swap_weights_after_loading(patch: pytest.MonkeyPatch, other: str) -> None:
    """Let the worker acknowledge the right shard, then compute with another one."""
    from dataclasses import replace

    from daskinfer.graphs.context import JobContext

    load = JobContext.load
    acknowledged: list[bool] = []

    def load_other(self: Any, stage: int) -> Any:
        loaded = load(self, stage)
        if acknowledged:
            return replace(loaded, snapshot=other)
        acknowledged.append(True)
        return loaded

    patch.setattr(JobContext, "load", load_other)


@pytest.mark.parametrize(
    ("install", "what"),
    [
        (read_other_manifest, "loaded {other} for stage 1, not"),
        (swap_weights_after_loading, "computed on {other}, but"),
    ],
    ids=["acknowledged", "computed"],
)
@pytest.mark.parametrize("stage", [1])
def test_a_worker_with_another_snapshot_stops_the_job(
    bench: Bench, scheduler: str, tmp_path: Path, install: Callable[..., None], what: str, stage: int
) -> None:
    model = make_tiny_bert(tmp_path / "other", layers=4, seed=1)
    other = api.publish("tiny", str(model), registry=str(bench.folder / "work/registry")).snapshot
    with (
        patched_workers(scheduler, install, other, only=stage),
        pytest.raises(SnapshotSkew, match=what.format(other=other)),
    ):
        run(small(bench), scheduler)
    assert not commits(bench.folder / "out.zarr")


def drop_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    annotate = dask.annotate
    monkeypatch.setattr(
        dask, "annotate", lambda **pins: annotate(**{name: pin for name, pin in pins.items() if name != "resources"})
    )


def test_lost_restrictions_stop_the_job(bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_resources(monkeypatch)
    with pytest.raises(JobFailed, match="lost the restrictions of task"):
        run(small(bench), scheduler)
    assert not commits(bench.folder / "out.zarr")


def test_lost_restrictions_would_show_in_the_trails(
    bench: Bench, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_resources(monkeypatch)
    monkeypatch.setattr("daskinfer.runtime.driver.submission.verify_restrictions", lambda *_: None)
    with pytest.raises(SnapshotSkew, match="which never acknowledged the snapshot"):
        run(small(bench), scheduler)


def test_stages_run_only_where_their_shard_was_acknowledged(bench: Bench, scheduler: str) -> None:
    report = run(small(bench, pipeline__stages=2), scheduler, workers=6)
    holders = {stage.stage: set(stage.workers) for stage in report.stages}
    assert [len(workers) for workers in holders.values()] == [3, 3]
    assert not holders[0] & holders[1]
    for record in commits(bench.folder / "out.zarr").values():
        for trail in record["trail"]:
            assert set(trail["workers"]) <= holders[trail["stage"]]
            assert trail["microbatches"] == len(record["microbatches"])


# Finished outputs


@pytest.mark.parametrize("gone", ["_MANIFEST.json", "embedding/c/3", "valid/c/0"])
def test_what_is_gone_of_a_finished_output_is_computed_again(bench: Bench, scheduler: str, gone: str) -> None:
    recipe, output = small(bench), bench.folder / "out.zarr"
    job = run(recipe, scheduler).job
    whole = data_bytes(output)
    place = output / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(IntegrityError, match="is gone") if place.suffix else nullcontext():
        assert api.verify_output(job, recipe.workspace).damaged
    assert run(recipe, scheduler).job == job
    assert data_bytes(output) == whole
    assert api.verify_output(job, recipe.workspace).damaged == ()


@pytest.mark.parametrize("format", ["zarr", "parquet", "jsonl"])
def test_a_file_among_the_parts_of_a_finished_output_is_found(bench: Bench, scheduler: str, format: str) -> None:
    recipe = small(bench, f"out.{format}")
    job = run(recipe, scheduler).job
    assert api.verify_output(job, recipe.workspace).strays == ()
    output = bench.folder / f"out.{format}"
    (output / "_quarantine").mkdir(exist_ok=True)
    strays = ["_quarantine/part-00000099.jsonl", *([] if format == "zarr" else [f"part-00000099.{format}"])]
    for name in (*strays, "_notes.txt", "_daskinfer/notes"):
        (output / name).touch()
    assert api.verify_output(job, recipe.workspace).strays == tuple(strays)
    ended = call("verify", job, cwd=bench.folder)
    assert ended.code == 1
    assert strays[0] in ended.err


def test_a_changed_bit_of_a_finished_output_is_found(bench: Bench, scheduler: str) -> None:
    recipe = small(bench)
    job = run(recipe, scheduler).job
    flip(bench.folder / "out.zarr" / "embedding" / "c" / "3" / "0")
    (found,) = api.verify_output(job, recipe.workspace).damaged
    assert found.partition == 3 and "is not what was committed" in found.problem
