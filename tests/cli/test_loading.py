"""How loading looks to who waits for it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from daskinfer.cli.output.progress import render_progress
from daskinfer.cli.output.show import print_status
from daskinfer.spec.job.record import JobStatus, Progress

LOADING = Progress(
    phase="loading",
    job="j",
    rows_total=10_000,
    seconds=3.0,
    busy=(0.0, 0.0),
    devices=("cuda: NVIDIA H200, 1.1 GB at most", ""),
    loaded_bytes=1_200_000_000,
    total_bytes=4_000_000_000,
    loaded_shards=3,
    total_shards=6,
)


def render(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render_progress("embed-news", progress))
    return capture.get()


def test_the_live_block_counts_bytes_while_it_loads() -> None:
    assert "1.2 GB of 4.0 GB, 3 of 6 shards" in render(LOADING)
    assert "rows" not in render(LOADING).splitlines()[0]
    assert "shards" not in render(LOADING.model_copy(update={"phase": "running"}))
    assert "shards" not in render(LOADING.model_copy(update={"total_shards": 0}))


@pytest.mark.parametrize("phase", ["loading", "running"])
def test_status_tells_of_shards_and_devices(phase: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = JobStatus(
        job="j",
        name="n",
        state="running",
        rows_total=10,
        rows_done=0,
        rows_quarantined=0,
        partitions=1,
        partitions_done=0,
        checkpoint="m@v1",
        snapshot="sha256:" + 64 * "0",
        output="out",
        created="now",
        driver="host:1",
        heartbeat_age=1.0,
        progress=LOADING.model_copy(update={"phase": phase}),
    )
    print_status(status)
    shown = capsys.readouterr().out
    assert ("1.2 GB of 4.0 GB, 3 of 6 shards" in shown) == (phase == "loading")
    assert "stage 0 cuda: NVIDIA H200, 1.1 GB at most" in shown and "stage 1" not in shown
