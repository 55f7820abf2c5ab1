"""What a task failed with, when even Dask does not know."""

from __future__ import annotations

from distributed import Client, wait

from daskinfer.runtime.driver.partition_futures import error_of
from daskinfer.runtime.state_machine.faults.poison_detector import blames_rows


def test_an_error_that_dask_has_forgotten_blames_no_row(client: Client) -> None:
    future = client.submit(int, "not a number")
    wait(future)
    assert isinstance(error_of(future), ValueError)
    future._state.exception = None
    assert not blames_rows(error_of(future))
