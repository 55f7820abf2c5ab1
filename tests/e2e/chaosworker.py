"""What every worker under fire is preloaded with: stores that misbehave, a diary of what was computed, faults by signal."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import torch
from distributed import Status
from distributed.comm.addressing import get_address_host_port

from daskinfer.graphs import tasks
from daskinfer.models.splitting.skeleton import Skeleton
from daskinfer.testing.faults.faulty_filesystem import FaultSchedule

RATES = {"drop": 0.01, "lose": 0.02, "delay": 0.05, "conflict": 0.01, "busy": 0.01}
PAUSE, BREAK_DEVICE, CUT_NETWORK = signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN
PAUSE_SECONDS = 3.0


def dask_setup(worker: Any) -> None:
    """Begin, in the worker's process."""
    seed = int(os.environ["CHAOS_SEED"]) + os.getpid()
    FaultSchedule(seed, RATES, delay_seconds=0.05).install()
    write_diary(Path(os.environ["CHAOS_DIARY"]) / f"{os.getpid()}-{time.time_ns()}")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(PAUSE, pause, worker, loop)
    loop.add_signal_handler(BREAK_DEVICE, break_device)
    loop.add_signal_handler(CUT_NETWORK, cut_network, worker)


def write_diary(path: Path) -> None:
    """Write down every stage of a microbatch that this process computes."""
    run_stage = tasks.run_stage

    def run_and_note(handle: Any, stage: int, partition: int, number: int, *words: Any) -> Any:
        result = run_stage(handle, stage, partition, number, *words)
        with path.open("a") as file:
            file.write(f"{partition}-{number}-{stage}\n")
        return result

    tasks.run_stage = run_and_note  # type: ignore[assignment]


def pause(worker: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Take no new tasks for a while, as Dask decides where memory is full."""
    worker.status = Status.paused
    loop.call_later(PAUSE_SECONDS, setattr, worker, "status", Status.running)


def break_device() -> None:
    """Let all that is computed fail from now on, as on a GPU that has failed."""

    def run(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    Skeleton.run = run  # type: ignore[assignment,method-assign]


def cut_network(worker: Any) -> None:
    """Let this process reach its scheduler and its nanny, and no other worker."""
    known = {get_address_host_port(address) for address in (worker.scheduler.address, worker.nanny)}
    connect = socket.socket.connect

    def connect_or_not(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_INET and address[:2] not in known:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        connect(self, address)

    socket.socket.connect = connect_or_not  # type: ignore[assignment,method-assign]
    for address, comms in worker.rpc.available.items():
        if get_address_host_port(address) not in known:
            for comm in list(comms):
                comm.abort()
