"""What this machine needs at the least for a case's bytes: to read them, to write them, to hand them over."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.plain import Computation
from benchmarks.work import Work

_BLOCK = 1 << 20


def measure_limits(work: Work, output_bytes: int) -> dict[str, float]:
    """Return bytes of input, output and, of texts, hidden states between two stages, and the least seconds for each."""
    files = [Path(work.input)] if Path(work.input).is_file() else sorted(Path(work.input).iterdir())
    began = time.perf_counter()
    size = sum(len(path.read_bytes()) for path in files)
    found = {"input_bytes": size, "read_seconds": time.perf_counter() - began}
    found |= {"output_bytes": output_bytes, "write_seconds": time_write(Path(work.folder, "raw"), output_bytes)}
    if work.task != "classify":
        crossing = count_hidden(work)
        found |= {"crossing_bytes": crossing, "loopback_seconds": time_loopback(crossing)}
    return found


def time_write(path: Path, size: int) -> float:
    """Return the seconds to write so many bytes, without waiting for the disk."""
    data = np.random.default_rng(0).bytes(size)
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def count_hidden(work: Work) -> int:
    """Return the bytes of the hidden states of all padded tokens in float32."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(work.model, local_files_only=True)
    batches = Computation(work, lambda *arrays: arrays[0]).batches(work.read_rows())
    tokens = sum(int(arrays[0].size) for _, arrays in batches)
    return tokens * int(config.hidden_size) * 4


def time_loopback(size: int) -> float:
    """Return the seconds that so many bytes take from one thread to another over 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=_send, args=(server.getsockname(), size))
        began = time.perf_counter()
        sender.start()
        connection, _ = server.accept()
        with connection:
            left, memory = size, bytearray(_BLOCK)
            while left:
                left -= connection.recv_into(memory, min(left, _BLOCK)) or left
        sender.join()
        return time.perf_counter() - began


def _send(address: tuple[str, int], size: int) -> None:
    block = bytes(_BLOCK)
    with socket.create_connection(address) as connection:
        for start in range(0, size, _BLOCK):
            connection.sendall(block[: min(_BLOCK, size - start)])
