"""transformers' own pipelines, with rows sorted by length beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.work import Work


def run(work: Work) -> Any:
    import torch

    torch.set_num_threads(work.cores)
    with torch.inference_mode():
        return run_texts(work) if work.task == "embed" else run_images(work)


def run_texts(work: Work) -> Any:
    import torch
    import transformers

    library: Any = transformers
    extract = library.pipeline("feature-extraction", model=work.model, device="cpu", dtype=torch.float32)
    work.mark_ready()
    rows = work.read_rows()
    limits = {"truncation": True, "max_length": work.max_length}
    lengths = [len(ids) for ids in extract.tokenizer(rows, **limits)["input_ids"]]
    order = sorted(range(len(rows)), key=lambda row: -lengths[row])
    outputs = extract(
        [rows[row] for row in order],
        batch_size=work.batch_rows,
        tokenize_kwargs={**limits, "padding": True},
        return_tensors=True,
    )
    vectors = np.empty((len(rows), extract.model.config.hidden_size), np.float32)
    for row, hidden in zip(order, outputs, strict=True):
        mean = hidden.reshape(-1, vectors.shape[1])[: lengths[row]].mean(0)  # the pipeline leaves the padding on
        vectors[row] = torch.nn.functional.normalize(mean, dim=0).numpy()
    return vectors


def run_images(work: Work) -> Any:
    import torch
    import transformers

    library: Any = transformers
    processor = library.AutoImageProcessor.from_pretrained(work.model, backend="pil")
    classify = library.pipeline(
        "image-classification", model=work.model, image_processor=processor, device="cpu", dtype=torch.float32
    )
    places = classify.model.config.label2id
    work.mark_ready()
    rows = work.read_rows()
    scores = np.empty((len(rows), len(places)), np.float32)
    for row, found in enumerate(classify(rows, batch_size=work.batch_rows, top_k=len(places))):
        for one in found:
            scores[row, places[one["label"]]] = one["score"]
    return scores


PEERS = (Peer("pipeline", "transformers' pipeline in one process", run, tasks=("embed", "classify")),)
