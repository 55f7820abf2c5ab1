"""Tensors between real processes: every bit arrives, and the scheduler knows how many there are."""

from __future__ import annotations

import os
import sys
from typing import Any

import cloudpickle
import pytest
import torch
from dask.sizeof import sizeof
from distributed import Client, wait

from daskinfer.runtime.cluster.admission import Admission

# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int64", "bool"]


def make_tensor(dtype: str) -> Any:
    import torch

    bits = torch.randint(0, 2, (300, 1000), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    return bits.to(getattr(torch, dtype)) if dtype == "bool" else (bits * 255 - 3).to(getattr(torch, dtype))


def read_bytes(tensor: Any) -> tuple[int, bytes]:
    import torch

    return os.getpid(), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def measure(dtype: str) -> int:
    return int(sizeof(make_tensor(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_goes_from_worker_to_worker_to_client(client: Client, addresses: list[str], dtype: str) -> None:
    made = client.submit(make_tensor, dtype, workers=[addresses[0]], key=f"made-{dtype}")
    maker, expected = client.submit(read_bytes, made, workers=[addresses[0]], key=f"at-home-{dtype}").result()
    reader, arrived = client.submit(read_bytes, made, workers=[addresses[1]], key=f"away-{dtype}").result()
    assert maker != reader
    assert arrived == expected == read_bytes(make_tensor(dtype))[1]
    gathered = made.result()
    assert gathered.dtype == getattr(torch, dtype) and gathered.shape == (300, 1000)
    assert read_bytes(gathered)[1] == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scheduler_sees_the_true_size(client: Client, dtype: str) -> None:
    made = client.submit(make_tensor, dtype, key=f"sized-{dtype}")
    wait(made)
    size = 300_000 * torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    key = made.key
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks[key].nbytes) == size
    assert measure(dtype) == client.run_on_scheduler(lambda: measure(dtype)) == size
    assert set(client.run(measure, dtype).values()) == {size}


def test_a_tensor_is_scattered_whole(client: Client, addresses: list[str]) -> None:
    tensor = make_tensor("bfloat16")
    scattered = client.scatter(tensor, workers=[addresses[1]])
    assert client.submit(read_bytes, scattered, workers=[addresses[0]]).result()[1] == read_bytes(tensor)[1]


def make_parameter() -> Any:
    import torch

    return torch.nn.Parameter(make_tensor("bfloat16"), requires_grad=False)


def test_a_parameter_stays_one(client: Client, addresses: list[str]) -> None:
    made = client.submit(make_parameter, workers=[addresses[0]])
    assert client.submit(read_bytes, made, workers=[addresses[1]]).result()[1] == read_bytes(make_parameter())[1]
    assert type(made.result()) is torch.nn.Parameter
    key = made.key
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks[key].nbytes) == 600_000


def test_a_worker_that_comes_later_is_set_up_too(prepared: tuple[Client, Admission], addresses: list[str]) -> None:
    client, admission = prepared
    client.restart_workers([addresses[1]], timeout=60)
    admission.forget(addresses[1])
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    assert admission.admit(workers) == set(workers)
    test_a_tensor_goes_from_worker_to_worker_to_client(client, workers, "bfloat16")
