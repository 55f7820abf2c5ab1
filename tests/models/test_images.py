from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from daskinfer.errors import CheckpointError, InputError
from daskinfer.models.preprocessing.images import ImageEncoder, decode

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}}),
    "clip": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": 32}),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}}),
    "bit": ("BitImageProcessorPil", {"size": {"shortest_edge": 36}, "crop_size": 32}),
}


def make_files(kind: str, folder: Path, **changes: Any) -> dict[str, bytes]:
    """The plain files of a checkpoint with a processor of a kind."""
    name, settings = PROCESSORS[kind]
    processor: Any = getattr(transformers, name)(**settings | changes)
    processor.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_image(mode: str = "RGB", size: tuple[int, int] = (50, 40), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("RGB").convert("P") if mode == "P" else image.convert(mode)


def encode_as(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_checkpoints_own_processor(kind: str, tmp_path: Path) -> None:
    encoder = ImageEncoder(make_files(kind, tmp_path))
    images = [make_image(size=size, seed=size[0]) for size in ((50, 40), (32, 32), (31, 90), (300, 200))]
    rows, refused = encoder.encode({"image": [encode_as(image) for image in images]})
    factory: Any = transformers.AutoImageProcessor
    processor = factory.from_pretrained(tmp_path, backend="pil")
    wanted = np.concatenate([processor(images=image, return_tensors="np")["pixel_values"] for image in images])
    assert refused == {}
    assert encoder.shape == (3, 32, 32)
    assert rows.arrays["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(rows.arrays["pixel_values"], wanted)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(mode: str) -> None:
    image = make_image("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256)
    np.testing.assert_array_equal(np.asarray(decode(encode_as(image))), np.asarray(image.convert("RGB")))


def test_images_are_turned_upright() -> None:
    image = make_image()
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    np.testing.assert_array_equal(np.asarray(decode(encode_as(image, exif=exif))), np.rot90(np.asarray(image), 3))


def test_broken_images_are_refused_and_the_others_pass(tmp_path: Path) -> None:
    encoder = ImageEncoder(make_files("vit", tmp_path))
    good = [encode_as(make_image(seed=seed), "JPEG") for seed in range(3)]
    broken = [good[0][: len(good[0]) // 2], b"", b"no image at all", encode_as(make_image(), "EPS")]
    mixed = [good[0], broken[0], broken[1], good[1], broken[2], good[2], broken[3]]
    rows, refused = encoder.encode({"image": mixed})
    assert refused.keys() == {1, 2, 4, 6}
    assert "truncated" in refused[1]
    assert refused[2] == "image: no bytes"
    assert refused[4] == refused[6] == "image: not an image of a known format"
    np.testing.assert_array_equal(
        rows.arrays["pixel_values"], encoder.encode({"image": good})[0].arrays["pixel_values"]
    )
    assert len(rows.lengths) == 3


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="pixels"):  # twice the limit
        decode(encode_as(make_image()))
    with pytest.raises(ValueError, match="pixels"), pytest.warns(Image.DecompressionBombWarning):
        decode(encode_as(make_image(size=(40, 30))))
    info = PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    with pytest.raises(ValueError, match=r"cannot be decoded|too large"):
        decode(encode_as(make_image(size=(8, 8)), pnginfo=info))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF"])
def test_damage_never_stops_the_job(kind: str) -> None:
    data = encode_as(make_image(size=(16, 16)), kind)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = np.frombuffer(data, np.uint8).copy()
        where = random.integers(0, len(damaged), 1 + int(random.integers(0, 8)))
        damaged[where] = random.integers(0, 256, len(where))
        try:
            decode(damaged[: int(random.integers(1, len(damaged) + 1))].tobytes())
        except ValueError as error:
            refused += 1
            assert "0x" not in str(error)
    assert refused > 20


@pytest.mark.parametrize("shape", [(3, 40, 50, 3), (3, 40, 50)])
def test_arrays_are_images_too(shape: tuple[int, ...], tmp_path: Path) -> None:
    encoder = ImageEncoder(make_files("vit", tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    encoded = [encode_as(Image.fromarray(one)) for one in pixels]
    rows, refused = encoder.encode({"image": pixels})
    assert refused == {}
    wanted = encoder.encode({"image": encoded})[0].arrays["pixel_values"]
    np.testing.assert_array_equal(rows.arrays["pixel_values"], wanted)


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8)])
def test_arrays_that_are_no_images_are_refused(pixels: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uint8 pixels"):
        ImageEncoder(make_files("vit", tmp_path)).encode({"image": pixels})


def test_nothing_gives_nothing(tmp_path: Path) -> None:
    rows, refused = ImageEncoder(make_files("vit", tmp_path)).encode({"image": []})
    assert rows.arrays["pixel_values"].shape == (0, 3, 32, 32)
    assert refused == {}


def test_rows_count_their_pixels_as_tokens(tmp_path: Path) -> None:
    rows, _ = ImageEncoder(make_files("vit", tmp_path)).encode({"image": [encode_as(make_image())] * 2})
    assert rows.lengths.tolist() == [4, 4]
    assert rows.batch([1], 4)["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {}, "no preprocessor_config.json"),
        (lambda files: edit(files, image_processor_type="NoSuchImageProcessor"), "cannot be used"),
        (lambda files: edit(files, do_resize=False), "different shapes"),
        (lambda files: edit(files, size={"shortest_edge": 32}), "different shapes"),
        (lambda files: {"preprocessor_config.json": b"{"}, "cannot be used"),
    ],
)
def test_unusable_processors_are_refused(
    change: Callable[[dict[str, bytes]], dict[str, bytes]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        ImageEncoder(change(make_files("vit", tmp_path)))


def edit(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    settings = json.loads(files["preprocessor_config.json"]) | changes
    return files | {"preprocessor_config.json": json.dumps(settings).encode()}


PADDED = {"size": {"shortest_edge": 32, "longest_edge": 32}, "pad_size": {"height": 40, "width": 40}, "do_pad": True}


def test_what_a_processor_tells_beside_pixels_is_known(tmp_path: Path) -> None:
    padded = {"image_processor_type": "DetrImageProcessor", **PADDED}
    encoder = ImageEncoder({"preprocessor_config.json": json.dumps(padded).encode()})
    assert encoder.shape == (3, 40, 40)
    assert encoder.others == {"pixel_mask"}
    whole = {"image_processor_type": "DetrImageProcessor", "size": {"height": 32, "width": 32}}
    assert not ImageEncoder({"preprocessor_config.json": json.dumps(whole).encode()}).others


@pytest.mark.parametrize("kind", ["ImageGPTImageProcessor", "GotOcr2ImageProcessor"])
def test_a_processor_without_one_array_of_pixels_is_refused(kind: str) -> None:
    settings = {"image_processor_type": kind, "crop_to_patches": True, "size": {"height": 8, "width": 8}}
    if kind.startswith("ImageGPT"):
        settings["clusters"] = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    with pytest.raises(CheckpointError, match="not one array of pixels"):
        ImageEncoder({"preprocessor_config.json": json.dumps(settings).encode()})


def test_code_of_the_checkpoint_is_not_run(tmp_path: Path) -> None:
    files = edit(make_files("vit", tmp_path), auto_map={"AutoImageProcessor": "evil.Evil"})
    del files["preprocessor_config.json"]
    settings = {"auto_map": {"AutoImageProcessor": "evil.Evil"}}
    files |= {"preprocessor_config.json": json.dumps(settings).encode(), "evil.py": b"raise SystemExit(1)"}
    with pytest.raises(CheckpointError, match="cannot be used"):
        ImageEncoder(files)
