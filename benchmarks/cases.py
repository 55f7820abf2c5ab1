"""What is measured against peers: a model, rows, batches, and who takes part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.models import find_minilm, make_gpt2, make_resnet, make_vit
from benchmarks.rows import write_glosses, write_images, write_sentences


@dataclass(frozen=True)
class Case:
    """One job that all contestants do."""

    name: str
    what: str
    task: str
    recipe: str
    """Of recipes/, with which daskinfer does it."""
    make_model: Callable[[Path], Path]
    write_rows: Callable[[Path, int], Path]
    rows: int
    full_rows: int
    peers: tuple[str, ...]
    partition_rows: int = 512
    batch_rows: int = 64
    batch_tokens: int = 2048
    minutes: float = 1.5
    """For its rounds, so that all cases together take less than twenty."""
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"daskinfer": {}})
    """daskinfer by its ways of doing it: settings beside those of every case. The first is the one that others are compared with."""


ONE_STAGE = {"pipeline.stages": 1}
TWO_STAGES = {"pipeline.stages": 2, "pipeline.activations.transport": "zarr"}
LIMIT = "products"
LOOPS = ("loop", "loop-onednn", "loops-onednn")
ENGINES = ("onnxruntime", "openvino")
SENTENCES = ("sentence-transformers", "sentence-transformers-pool")
CLUSTERS = ("dask-bag", "dask-dataframe", "ray-data", "spark")

CASES = {
    case.name: case
    for case in (
        Case(
            "embed",
            "WordNet glosses through all-MiniLM-L6-v2",
            "embed",
            "embed_text.yaml",
            find_minilm,
            write_glosses,
            rows=2_000,
            full_rows=8_000,
            minutes=5,
            peers=(*LOOPS, *ENGINES, *SENTENCES, "pipeline", *CLUSTERS, LIMIT),
            jobs={"daskinfer": ONE_STAGE, "daskinfer-two-stages": TWO_STAGES},
        ),
        Case(
            "short",
            "sentences of four to eight words through all-MiniLM-L6-v2, in partitions of 512",
            "embed",
            "embed_text.yaml",
            find_minilm,
            write_sentences,
            rows=4_096,
            full_rows=24_576,
            batch_rows=128,
            peers=("loop", "loops-onednn", "sentence-transformers-pool", "dask-bag", LIMIT),
            jobs={"daskinfer": ONE_STAGE},
        ),
        Case(
            "vit",
            "JPEG images through a ViT-Ti/16 of random weights",
            "classify",
            "classify_images.yaml",
            make_vit,
            write_images,
            rows=256,
            full_rows=2_048,
            partition_rows=64,
            batch_rows=16,
            peers=("loop", "loops-onednn", *ENGINES, "pipeline", LIMIT),
            jobs={"daskinfer": ONE_STAGE},
        ),
        Case(
            "resnet",
            "JPEG images through a ResNet-18 of random weights",
            "classify",
            "classify_images.yaml",
            make_resnet,
            write_images,
            rows=256,
            full_rows=2_048,
            partition_rows=64,
            batch_rows=16,
            peers=("loop", *ENGINES, "pipeline", LIMIT),
            jobs={"daskinfer": ONE_STAGE},
        ),
        Case(
            "score",
            "WordNet glosses through a decoder of GPT-2's kind, 6 layers of 384, random weights",
            "score",
            "score_text.yaml",
            make_gpt2,
            write_glosses,
            rows=512,
            full_rows=4_096,
            partition_rows=128,
            peers=("loop", "loops-onednn", *ENGINES, LIMIT),
            jobs={"daskinfer": ONE_STAGE},
        ),
        Case(
            "kernels",
            "WordNet glosses through all-MiniLM-L6-v2, by each kernel of linear layers",
            "embed",
            "embed_text.yaml",
            find_minilm,
            write_glosses,
            rows=2_000,
            full_rows=8_000,
            peers=(),
            jobs={f"daskinfer-{name}": {"model.kernels": name} | ONE_STAGE for name in ("torch", "onednn", "auto")},
        ),
    )
}
