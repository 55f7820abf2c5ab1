from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dask.task_spec import Task

from daskinfer.graphs.build import (
    StageTask,
    commit_graph,
    find_stage_task,
    job_tag,
    load_graph,
    microbatch_graph,
    prepare_graph,
    stage_tag,
)
from daskinfer.graphs.handoff import Encoded, Handoff, JobHandle
from daskinfer.graphs.sizes import register_sizes
from daskinfer.models.preprocessing.encoding import EncodedRows, Variants
from daskinfer.spec.job.generation import SnapshotPin
from daskinfer.spec.recipe.dialect import Csv
from daskinfer.spec.rows import InputFile, Microbatch, Partition, Segment
from daskinfer.storage.inputs.interface import Layout
from daskinfer.storage.inputs.reading import PartitionSource

HANDLE = JobHandle(workspace="/work", job="job", epoch=3, pin=SnapshotPin(snapshot="sha256:one"))
PARTITION = Partition(number=5, first_row=50, rows=10, segments=(Segment(file=0, begin=0, end=100, rows=10, line=51),))


def dependencies(task: Task) -> set[Any]:
    return set(task.dependencies)


def test_a_partition_is_read_encoded_and_counted() -> None:
    file = InputFile(url="in.jsonl", size=100, etag="1")
    source = PartitionSource("jsonl", PARTITION, ((file,),), Layout({"text": "string"}, ("text",), ()), Csv())
    graph = prepare_graph(HANDLE, source, attempt=2)
    rows, encoded, count = graph.wanted
    assert rows == ("job", "read", "3.0", 0, 5, 2)
    assert dependencies(graph.tasks[encoded]) == {rows}
    assert dependencies(graph.tasks[count]) == {encoded}
    assert all(resources.keys() == {job_tag(HANDLE)} for resources in graph.resources.values())


def test_a_microbatch_goes_through_all_stages_on_the_workers_that_hold_them() -> None:
    encoded = ("job", "encode", "3.0", 0, 5, 0)
    graph = microbatch_graph(HANDLE, 3, {"GPU": 1}, partition=5, numbers=(0, 7), encoded=encoded, attempt=0)
    assert graph.wanted == (("job", "stage-2", "3.0", 0, 5, 0, 0), ("job", "stage-2", "3.0", 0, 5, 7, 0))
    assert len(graph.tasks) == 6
    for stage in range(3):
        key = ("job", f"stage-{stage}", "3.0", 0, 5, 7, 0)
        before = {("job", f"stage-{stage - 1}", "3.0", 0, 5, 7, 0)} if stage else set()
        assert dependencies(graph.tasks[key]) == {encoded, *before}
        assert graph.resources[key] == {"GPU": 1, stage_tag(HANDLE, stage): 1}


def test_a_commit_needs_every_microbatch() -> None:
    handoffs = {number: ("job", "stage-1", "3.0", 0, 5, number, 0) for number in range(4)}
    graph = commit_graph(
        HANDLE, 5, ("job", "read", "3.0", 0, 5, 0), ("job", "encode", "3.0", 0, 5, 0), handoffs, attempt=0
    )
    (task,) = graph.tasks.values()
    assert dependencies(task) == {
        ("job", "read", "3.0", 0, 5, 0),
        ("job", "encode", "3.0", 0, 5, 0),
        *handoffs.values(),
    }


@pytest.mark.parametrize(
    "later", [replace(HANDLE, epoch=4), replace(HANDLE, connection=1), replace(HANDLE, member="a")]
)
def test_another_driver_or_connection_shares_no_key_and_no_token(later: JobHandle) -> None:
    assert load_graph(HANDLE, 0, "a").wanted != load_graph(later, 0, "a").wanted
    assert stage_tag(HANDLE, 0) != stage_tag(later, 0)
    assert job_tag(HANDLE) != job_tag(later)


def test_another_generation_shares_no_key_and_no_stage_but_its_workers() -> None:
    other = replace(HANDLE, pin=SnapshotPin(generation=1, snapshot="sha256:two"))
    assert load_graph(HANDLE, 0, "a").wanted != load_graph(other, 0, "a").wanted
    assert stage_tag(HANDLE, 0) != stage_tag(other, 0)
    assert job_tag(HANDLE) == job_tag(other)


POSITIONS = np.array([0, 2, 3], np.int32)
TEXTS = EncodedRows(ids=np.array([1, 2, 3, 4, 5, 6], np.int32), starts=np.array([0, 1, 4, 6]), pad=9)


def test_texts_are_padded_on_the_right_in_the_order_of_the_microbatch() -> None:
    encoded = Encoded(TEXTS, {}, (Microbatch((1, 2), 3), Microbatch((0,), 1)), POSITIONS)
    batch = encoded.batch(0)
    assert batch["input_ids"].tolist() == [[2, 3, 4], [5, 6, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert encoded.batch(1)["input_ids"].tolist() == [[1]]


def test_rows_are_left_out_without_a_change_to_the_others() -> None:
    encoded = Encoded(TEXTS, {}, (Microbatch((1, 2), 3), Microbatch((0,), 1)), POSITIONS)
    assert encoded.positions_in(0) == (2, 3)
    assert encoded.items(0, without=[3]) == (1,)
    assert encoded.batch(0, without=[2, 0])["input_ids"].tolist() == [[5, 6, 9]]  # padded as before
    variants = Variants(np.array([1, 1, 2], np.int32), np.array([0, 2, 1], np.int32), mask=7)
    encoded = replace(encoded, rows=replace(TEXTS, variants=variants), microbatches=(Microbatch((2, 0, 1), 3),))
    assert encoded.positions_in(0) == (3, 2)
    assert encoded.items(0, without=[2]) == (2,)


def test_a_task_tells_its_microbatch() -> None:
    graph = microbatch_graph(HANDLE, 2, {}, 5, (7,), ("job", "encode", "3.0", 0, 5, 0), attempt=4)
    found = [find_stage_task(HANDLE, key, "tcp://w", 1.5) for key in graph.tasks]
    assert found == [StageTask(0, 5, 7, 4, stage, "tcp://w", 1.5) for stage in (0, 1)]
    others = [
        ("job", "encode", "3.0", 0, 5, 0),
        ("job", "stage-1", "4.0", 0, 5, 7, 0),
        ("job2", "stage-1", "3.0", 0, 5, 7, 0),
        "x-1",
    ]
    assert not any(find_stage_task(HANDLE, key, "tcp://w") for key in others)


def test_variants_mask_one_token_each() -> None:
    rows, positions = np.array([1, 1, 2], np.int32), np.array([0, 2, 1], np.int32)
    encoded = replace(TEXTS, variants=Variants(rows, positions, mask=7))
    assert encoded.lengths.tolist() == [3, 3, 2]
    batch = encoded.batch([2, 0], 3)
    assert batch["input_ids"].tolist() == [[5, 7, 9], [7, 3, 4]]
    assert (batch["position"].tolist(), batch["target"].tolist()) == ([1, 0], [6, 2])


def test_arrays_are_taken_row_by_row() -> None:
    pixels = np.arange(12.0).reshape(3, 2, 2)
    encoded = EncodedRows(ids=np.empty(0, np.int32), starts=np.arange(4), arrays={"pixel_values": pixels})
    assert np.array_equal(encoded.batch([2, 0], 1)["pixel_values"], pixels[[2, 0]])


@pytest.mark.parametrize("rows", [10, 1000])
def test_dask_sees_the_bytes_of_what_tasks_hand_on(rows: int) -> None:
    from dask.sizeof import sizeof

    register_sizes()
    assert sizeof(Handoff({"embedding": np.zeros((rows, 384), np.float32)}, ())) >= rows * 384 * 4
    texts = EncodedRows(np.zeros(rows * 20, np.int32), np.zeros(rows + 1, np.int64), arrays={"x": np.zeros((rows, 9))})
    assert sizeof(Encoded(texts, {}, (), np.arange(rows, dtype=np.int32))) >= rows * (20 * 4 + 9 * 8 + 4)


def test_tasks_say_what_their_log_records_are_about() -> None:
    graph = microbatch_graph(
        HANDLE, 2, {}, partition=5, numbers=(7,), encoded=("job", "encode", "3.0", 0, 5, 0), attempt=2
    )
    about = {"job": "job", "epoch": 3, "snapshot": HANDLE.pin.snapshot, "partition": 5, "microbatch": 7, "attempt": 2}
    assert [task.args[0] for task in graph.tasks.values()] == [about | {"stage": stage} for stage in (0, 1)]
    (load,) = load_graph(HANDLE, 1, "tcp://worker", attempt=4).tasks.values()
    assert load.args[0] == {"job": "job", "epoch": 3, "snapshot": HANDLE.pin.snapshot, "stage": 1}
    (commit,) = commit_graph(HANDLE, 5, ("rows",), ("encoded",), {}, attempt=1).tasks.values()
    assert commit.args[0] == {key: about[key] for key in ("job", "epoch", "snapshot", "partition")} | {"attempt": 1}
