"""The hand-written rival: a length-sorted PyTorch loop in one process, as a careful person would write it.

Tokenise everything, sort by length, pack batches up to a number of padded tokens, run the model, pool, normalise,
put the rows back in order and save. Prints one JSON object with wall-clock stamps, so that several can be timed
together. Usable alone:

    python benchmarks/loop.py MODEL_DIR data/glosses.jsonl out.npy --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    started = time.time()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("input", type=Path, help="jsonl with a column `text`")
    parser.add_argument("output", type=Path, help=".npy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens of a batch")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--part", default="0/1", help="K/N takes every Nth row, from the Kth")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # the tokenizer's own threads, read at its first use
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    model = AutoModel.from_pretrained(options.model, local_files_only=True).eval()
    ready = time.time()
    part, parts = map(int, options.part.split("/"))
    with options.input.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][part::parts]
    tokens = tokenizer(
        texts, truncation=True, max_length=options.max_length, return_attention_mask=False, return_token_type_ids=False
    )["input_ids"]
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    padded = 0
    with torch.inference_mode():
        for rows in pack([len(row) for row in tokens], options.tokens):
            vectors[rows] = embed_batch(model, [tokens[row] for row in rows], tokenizer.pad_token_id).numpy()
            padded += len(rows) * len(tokens[rows[0]])
    np.save(options.output, vectors)
    done = time.time()
    counts = {"rows": len(texts), "tokens": sum(map(len, tokens)), "padded_tokens": padded}
    print(json.dumps({"started": started, "ready": ready, "done": done, **counts}))


def pack(lengths: list[int], tokens: int) -> list[list[int]]:
    """Return batches of positions, longest first, each within `tokens` padded tokens where more than one row fits."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def embed_batch(model: Any, rows: list[list[int]], padding: int) -> Any:
    """Return mean-pooled vectors of length 1, shape (rows, hidden)."""
    import torch

    ids = torch.full((len(rows), max(map(len, rows))), padding)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1)


if __name__ == "__main__":
    main()
