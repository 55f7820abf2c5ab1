"""sentence-transformers: in one process, and with its own pool of processes."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.peer import Peer
from benchmarks.work import Work


def _load(work: Work) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(work.model, device="cpu", local_files_only=True)
    model.max_seq_length = work.max_length
    return model


def run_single(work: Work) -> Any:
    import torch

    torch.set_num_threads(work.cores)
    model = _load(work)
    work.mark_ready()
    return model.encode(
        work.read_rows(), batch_size=work.batch_rows, normalize_embeddings=True, show_progress_bar=False
    )


def run_pool(work: Work) -> Any:
    model = _load(work)
    pool = model.start_multi_process_pool(["cpu"] * work.cores)
    work.mark_ready()
    try:
        return model.encode(
            work.read_rows(),
            pool=pool,
            batch_size=work.batch_rows,
            chunk_size=work.partition_rows,
            normalize_embeddings=True,
        )
    finally:
        model.stop_multi_process_pool(pool)


PEERS = (
    Peer(
        "sentence-transformers",
        "encode in one process",
        run_single,
        tasks=("embed",),
        packages=("sentence-transformers",),
    ),
    Peer(
        "sentence-transformers-pool",
        "encode with its pool of processes",
        run_pool,
        tasks=("embed",),
        packages=("sentence-transformers",),
        processes=2,
    ),
)
