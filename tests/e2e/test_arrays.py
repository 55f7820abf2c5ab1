"""Images and arrays through the workers, compared with the plain module at the same microbatches, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import zarr
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from daskinfer.spec.recipe.schema import Recipe
from daskinfer.testing.models.tinymodels import make_tiny
from tests.e2e.conftest import run
from tests.e2e.outputs import read_columns, read_microbatches, read_quarantine

ROWS = 40
PARTITION = 16
BROKEN = 7
CLASSES = ("cat", "dog", "river")
Plain = Callable[[Any, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Gallery:
    """A folder with a ViT, a BERT, pictures, pixel values and token ids; its registry is shared by all tests."""

    folder: Path
    pictures: NDArray[np.uint8]
    """(rows, height, width, 3)"""
    pixels: NDArray[np.float32]
    """(rows, 3, 32, 32): what the checkpoint's processor makes of the pictures."""
    ids: NDArray[np.int64]
    """(rows, 9)"""

    def compute(
        self, scheduler: str, task: str, output: str, stages: int, model: str, **given: Any
    ) -> tuple[list[int], dict[str, NDArray[Any]]]:
        """Run a task; return the rows of its microbatches, and the output's columns without the row that is refused."""
        recipe = Recipe.model_validate(
            {
                "daskinfer": 1,
                "name": "gallery",
                "workspace": str(self.folder / "work"),
                "model": {"checkpoint": str(self.folder / model), "task": task},
                "input": {"partition_rows": PARTITION, **given, "url": str(self.folder / given["url"])},
                "output": {"url": str(self.folder / output)},
                "pipeline": {"stages": stages, "microbatch_tokens": 24},
                "errors": {"max_rows": 1},
            }
        )
        report = run(recipe, scheduler, workers=stages)
        assert len(report.stages) == stages
        assert (report.rows_in, report.rows_out + report.rows_quarantined) == (ROWS, ROWS)
        assert len(read_quarantine(self.folder / output)) == report.rows_quarantined
        sizes = [rows for partition in read_microbatches(recipe, report) for rows, _ in partition]
        assert len(sizes) > 2
        return sizes, read_columns(self.folder / output)


def run_plain(model: Any, values: NDArray[Any], sizes: list[int], plain: Plain) -> dict[str, NDArray[Any]]:
    """Return what plain code makes of the rows, in microbatches of these sizes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # not mapped from a file, at addresses where sums may be ordered else
    torch.set_num_threads(1)
    with torch.inference_mode():
        parts = [plain(model, part) for part in torch.split(torch.as_tensor(values), sizes)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def without_broken(values: NDArray[Any]) -> NDArray[Any]:
    return np.delete(values, BROKEN, axis=0)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    make_tiny(folder / "bert", "BertModel")
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = transformers.ViTConfig(**size, image_size=32, patch_size=8, id2label=dict(enumerate(CLASSES)))
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    processor: Any = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(folder / "vit")
    source = np.random.default_rng(0)
    pictures = source.integers(0, 256, (ROWS, 40, 50, 3), dtype=np.uint8)
    pixels = processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="np")["pixel_values"]
    ids = source.integers(5, 90, (ROWS, 9))
    (folder / "photos").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"photos/{number:03}.png")
    broken = folder / f"photos/{BROKEN:03}.png"
    broken.write_bytes(broken.read_bytes()[:1000])
    group = zarr.open_group(folder / "pixels.zarr", mode="w")
    group.create_array("values", data=pixels, chunks=(PARTITION, 3, 32, 32))
    group.create_array("picture", data=pictures, chunks=(PARTITION, 40, 50, 3))
    return Gallery(folder, pictures, pixels, ids)


def score_classes(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    return {"scores": torch.softmax(model(pixel_values=pixels).logits, -1)}


def embed(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    hidden = model.vit(pixel_values=pixels).last_hidden_state
    return {"embedding": torch.nn.functional.normalize(hidden.mean(1), dim=1)}


def load(gallery: Gallery) -> Any:
    return transformers.ViTForImageClassification.from_pretrained(gallery.folder / "vit")


def test_classify_images(gallery: Gallery, scheduler: str) -> None:
    for stages in (1, 3):
        output = f"classes-{stages}.parquet"
        sizes, columns = gallery.compute(scheduler, "classify", output, stages, "vit", url="photos", format="images")
        scores = run_plain(load(gallery), without_broken(gallery.pixels), sizes, score_classes)["scores"]
        assert np.array_equal(columns["scores"], scores)
        assert columns["label"].tolist() == [CLASSES[best] for best in scores.argmax(1)]
        assert np.array_equal(columns["score"], scores.max(1))
        assert read_quarantine(gallery.folder / output) == {BROKEN: "image: cannot be decoded: image file is truncated"}


def test_embed_images(gallery: Gallery, scheduler: str) -> None:
    given = {"url": "pixels.zarr", "columns": {"image": "picture"}}
    sizes, columns = gallery.compute(scheduler, "embed", "embedding.zarr", 3, "vit", **given)
    assert np.array_equal(columns["embedding"], run_plain(load(gallery), gallery.pixels, sizes, embed)["embedding"])


def test_forward_of_the_checkpoints_own_class(gallery: Gallery, scheduler: str) -> None:
    given = {"url": "pixels.zarr", "columns": {"pixel_values": "values"}}
    sizes, columns = gallery.compute(scheduler, "forward", "logits.parquet", 2, "vit", **given)
    expected = run_plain(load(gallery), gallery.pixels, sizes, lambda model, x: dict(model(pixel_values=x)))
    assert columns.keys() == {"row", "logits"}
    assert np.array_equal(columns["logits"], expected["logits"])


def test_forward_refuses_a_row_that_the_model_cannot_take(gallery: Gallery, scheduler: str) -> None:
    ids = gallery.ids.copy()
    ids[BROKEN, 3] = 4711
    column = pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), ids.shape[1])
    pq.write_table(pa.table({"input_ids": column}), gallery.folder / "ids.parquet")
    given = {"url": "ids.parquet", "columns": {"input_ids": "input_ids"}}
    model = transformers.BertModel.from_pretrained(gallery.folder / "bert")
    found = []
    for stages in (1, 3):
        sizes, columns = gallery.compute(scheduler, "forward", f"hidden-{stages}.zarr", stages, "bert", **given)
        expected = run_plain(model, without_broken(ids), sizes, lambda model, x: dict(model(input_ids=x)))
        for name in ("last_hidden_state", "pooler_output"):
            assert np.array_equal(columns[name], expected[name])
        found.append(read_quarantine(gallery.folder / f"hidden-{stages}.zarr"))
    assert found[0] == found[1]
    assert found[0].keys() == {BROKEN}
    assert "4711" in found[0][BROKEN]
