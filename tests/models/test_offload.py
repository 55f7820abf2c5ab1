"""Shards that are larger than their device: the same bits, little memory, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskinfer import api
from daskinfer.runtime.snapshots.outline_cache import find_outline
from daskinfer.spec.outline import InputArray
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import Array, cut_checkpoint, request_of, run_through
from daskinfer.testing.models.tinymodels import make_tiny, make_tiny_bert

pytestmark = pytest.mark.late

IMAGE = InputArray(name="image", dtype="float32", shape=(3, 16, 16))
MEGABYTE = 10**6


def make_texts(rows: int = 4, length: int = 11) -> dict[str, Array]:
    random = np.random.default_rng(rows)
    mask = (np.arange(length) < random.integers(2, length + 1, rows)[:, None]).astype(np.int64)
    return {"input_ids": random.integers(5, 50, (rows, length)) * mask, "attention_mask": mask}


def prepare(tmp_path: Path, what: str) -> tuple[Registry, Any, list[Mapping[str, Array]]]:
    """Publish a model as `m@v1`; return its registry, the request and two microbatches."""
    url = str(tmp_path / "registry")
    texts: list[Mapping[str, Array]] = [make_texts(), make_texts(3, 7)]
    if what == "unet":
        api.publish("m", entry="daskinfer.testing.models.ownmodels:make_unet", registry=url)
        images = np.random.default_rng(0).random((5, 3, 16, 16), dtype=np.float32)
        return (
            Registry(url),
            request_of(Registry(url), "m@v1", "forward", arrays=[IMAGE]),
            [{"image": images}, {"image": images[:2]}],
        )
    architecture, task, settings = {
        "bert": ("BertModel", "embed", {}),
        "llama-tied": ("LlamaForCausalLM", "score", {"tie_word_embeddings": True}),
        "deberta": ("DebertaV2Model", "embed", {}),
    }[what]
    api.publish("m", str(make_tiny(tmp_path / "model", architecture, settings=settings)), registry=url)
    return Registry(url), request_of(Registry(url), "m@v1", task), texts


def kept(scratch: Path) -> set[str]:
    """Return the paths of all parameters on disk."""
    return {file.name.removesuffix(".dat") for file in scratch.rglob("*.dat")}


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("what", ["bert", "llama-tied", "deberta", "unet"])
def test_weights_on_disk_give_the_same_bits(tmp_path: Path, what: str, stages: int) -> None:
    registry, request, batches = prepare(tmp_path, what)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    _, plain = cut_checkpoint(registry, "m@v1", request, stages)
    outline, lean = cut_checkpoint(registry, "m@v1", request, stages, offload="disk", scratch=scratch)
    for batch in (*batches, batches[0]):
        wanted, found = run_through(plain, batch), run_through(lean, batch)
        assert wanted.keys() == found.keys()
        assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
        assert all(np.isfinite(values).any() for values in wanted.values())
    assert [stage.read_bytes for stage in lean] == [stage.read_bytes for stage in plain]
    files = kept(scratch)
    layers = {layer.units[-1] for layer in outline.layers}
    assert all(any(file.startswith(f"{layer}.") for file in files) for layer in layers), files
    # What is read as an attribute, and statistics that no unit brings along, stay.
    assert not any("rel_embeddings" in file or "running_" in file for file in files)
    assert any("rel_embeddings" in name for name in outline.shared) == (what == "deberta")
    if what == "llama-tied" and stages == 1:
        pair = [next(scratch.rglob(f"*{name}.weight.dat")) for name in ("embed_tokens", "lm_head")]
        assert pair[0].samefile(pair[1])
    del lean, found
    assert list(scratch.iterdir()) == []


def test_main_memory_of_a_cpu_is_its_device(tmp_path: Path) -> None:
    registry, request, batches = prepare(tmp_path, "bert")
    _, plain = cut_checkpoint(registry, "m@v1", request, 2)
    _, lean = cut_checkpoint(registry, "m@v1", request, 2, offload="cpu")
    wanted, found = run_through(plain, batches[0]), run_through(lean, batches[0])
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


_MEASURE = """
import ctypes, json, sys, threading, time
from pathlib import Path
import numpy as np
from daskinfer.storage.registry.catalog import Registry
from daskinfer.testing.fixtures.stages import cut_checkpoint, request_of, run_through

def held():
    # Pages of the files that weights wait in are not counted: the system takes them back when it needs them.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

class Peak:
    def __enter__(self):
        self.highest, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.ended.wait(0.002):
            self.highest = max(self.highest, held())
    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()

registry, offload = Registry(sys.argv[1]), sys.argv[2]
request = request_of(registry, "m@v1")
inputs = {"input_ids": np.full((2, 8), 7), "attention_mask": np.ones((2, 8), np.int64)}
# Whatever the first load and run of a process take for good is not the shard's.
run_through(cut_checkpoint(registry, "tiny@v1", request_of(registry, "tiny@v1"))[1], inputs)
ctypes.CDLL(None).malloc_trim(0)
before = held()
with Peak() as loading:
    _, stages = cut_checkpoint(registry, "m@v1", request, offload=offload, scratch=Path(sys.argv[3]))
with Peak() as running:
    for _ in range(2):
        run_through(stages, inputs)
print(json.dumps([loading.highest - before, running.highest - before, stages[0].read_bytes]))
"""


def measure(registry: str, offload: str, scratch: Path) -> tuple[int, int, int]:
    """Return the most bytes that loading and running a whole model took, and the bytes it read."""
    command = [sys.executable, "-c", _MEASURE, registry, offload, str(scratch)]
    # What is freed goes back at once, so that the process is seen to hold what it needs and not what malloc keeps.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    loading, running, read = json.loads(done.stdout.splitlines()[-1])
    return loading, running, read


@pytest.mark.late
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_stays_well_below_the_shard(tmp_path: Path) -> None:
    url = str(tmp_path / "registry")
    api.publish("tiny", str(make_tiny_bert(tmp_path / "tiny")), registry=url)
    large = make_tiny_bert(tmp_path / "large", layers=6, hidden=640)
    api.publish("m", str(large), registry=url, reference=True)
    for model in ("tiny@v1", "m@v1"):  # tracing is the driver's
        find_outline(url, request_of(Registry(url), model), "float32")
    loading, running, read = measure(url, "none", tmp_path)
    assert read > 75 * MEGABYTE
    assert loading > 0.9 * read, "the measure sees the shard"
    loading, running, read = measure(url, "disk", tmp_path)
    assert max(loading, running) < 0.45 * read, (loading, running, read)
    assert not list(tmp_path.rglob("*.dat"))
