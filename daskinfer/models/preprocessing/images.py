"""Images to pixel values, by the checkpoint's own image processor."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor

from daskinfer.errors import CheckpointError, InputError
from daskinfer.models.preprocessing.arrays import Array, make_rows
from daskinfer.models.preprocessing.encoding import EncodedRows
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import ModelOptions

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats whose decoders only decode: EPS, for one, starts another program.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# What its decoders raise on damaged bytes; not MemoryError, which says nothing about the image.
_DECODE_ERRORS = (OSError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error)
_SETTINGS = ("preprocessor_config.json", "processor_config.json")
# A processor that brings the shorter side to 500 pixels makes 150 MB of such an image before it crops it.
_LONGEST_SIDES = 200
# Two sizes, one wide and one tall: a processor whose output follows its input shows it.
_PROBES = ((64, 48), (40, 90))


class ImageEncoder:
    """Decodes images and prepares them as the checkpoint's processor says.

    Parameters
    ----------
    files
        The snapshot's plain files: config.json and preprocessor_config.json or processor_config.json.
    max_pixels
        Images of more are refused.

    Raises
    ------
    CheckpointError
        Where there is no usable processor, or its images differ in shape.

    Examples
    --------
    >>> settings = b'{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}'
    >>> files = {"config.json": b'{"model_type": "vit"}', "preprocessor_config.json": settings}
    >>> encoder = ImageEncoder(files)
    >>> rows, refused = encoder.encode({"image": np.zeros((2, 32, 16, 3), np.uint8)})
    >>> encoder.shape, rows.arrays["pixel_values"].shape, refused
    ((3, 8, 8), (2, 3, 8, 8), {})
    """

    def __init__(self, files: Mapping[str, bytes], max_pixels: int = ModelOptions().max_pixels) -> None:
        self._max_pixels = max_pixels
        self._processor = _load_processor(files)
        outputs = [self._call(_make_probe(size)) for size in _PROBES]
        for output in outputs:
            if len(output.get("pixel_values", ())) != 1:
                raise CheckpointError(
                    f"the checkpoint's image processor gives {', '.join(output)} for an image, not one array of pixels",
                    hint="Prepare the images yourself, and use the task forward with arrays of those names.",
                )
        shapes = {np.asarray(output["pixel_values"][0]).shape for output in outputs}
        self.others: frozenset[str] = frozenset(
            name
            for output in outputs
            for name, value in output.items()
            if name != "pixel_values" and not (name == "pixel_mask" and np.all(np.asarray(value) == 1))
        )
        """What else it tells of an image; a mask that leaves nothing out is what a model assumes without one."""
        if len(shapes) > 1 or len(next(iter(shapes))) != 3:
            raise CheckpointError(
                f"the checkpoint's image processor gives images of different shapes: {sorted(shapes)}",
                hint="Set a fixed size in preprocessor_config.json: size with height and width, or a center crop.",
            )
        self.shape: tuple[int, ...] = shapes.pop()
        """Shape of one image: channels, height, width."""

    @property
    def input(self) -> InputArray:
        """What the model is given."""
        return InputArray(name="pixel_values", dtype="float32", shape=self.shape)

    def encode(self, columns: Mapping[str, Sequence[bytes] | Array]) -> tuple[EncodedRows, dict[int, str]]:
        """Return the images that can be used, and why the others cannot.

        Parameters
        ----------
        columns
            `image` -> encoded images, or uint8 pixels (rows, height, width, 3) or (rows, height, width).

        Returns
        -------
        EncodedRows
            `pixel_values` float32 (rows, channels, height, width) of the usable images, in order.
        dict
            Position of a refused image -> the reason.

        Raises
        ------
        InputError
            Where an array does not hold pixels.
        """
        images = columns["image"]
        if isinstance(images, np.ndarray):
            _check_pixels(images)
        pixels: NDArray[np.float32] = np.empty((len(images), *self.shape), dtype=np.float32)
        refused: dict[int, str] = {}
        filled = 0
        for position, image in enumerate(images):
            try:
                pixels[filled] = self._process(self._open(image))
            except ValueError as error:
                refused[position] = f"image: {error}"
            else:
                filled += 1
        return make_rows({"pixel_values": pixels[:filled]}), refused

    def _open(self, image: bytes | Array) -> Image:
        if isinstance(image, np.ndarray):
            _check_size(image.shape[1], image.shape[0], self._max_pixels)
            return _from_array(image)
        return decode(image, self._max_pixels)

    def _process(self, image: Image) -> Array:
        pixels: Array = self._call(image)["pixel_values"][0]
        return pixels

    def _call(self, image: Image) -> Mapping[str, Any]:
        # One at a time: some processors pad all images of a call to the largest.
        output: Mapping[str, Any] = self._processor(images=[image], return_tensors="np")
        return output


def decode(data: bytes, max_pixels: int = ModelOptions().max_pixels) -> Image:
    """Return an encoded image upright and in RGB, as transformers itself loads images.

    Raises
    ------
    ValueError
        Where it cannot be decoded, is truncated, or is too large.

    Examples
    --------
    >>> from PIL import Image
    >>> stream = BytesIO()
    >>> Image.new("L", (3, 2)).save(stream, "PNG")
    >>> decode(stream.getvalue()).mode, decode(stream.getvalue()).size
    ('RGB', (3, 2))
    >>> decode(b"no image")
    Traceback (most recent call last):
        ...
    ValueError: not an image of a known format
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()
    try:
        with Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            _check_size(image.width, image.height, min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels))
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        # Its own message names an address in memory, which no two runs have in common.
        raise ValueError("not an image of a known format" if data else "no bytes") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(str(error)) from error
    except _DECODE_ERRORS as error:
        raise ValueError(f"cannot be decoded: {error}") from error


def _check_size(width: int, height: int, most: int) -> None:
    """Raise `ValueError` where decoding an image, or resizing it by its shorter side, would take too much memory."""
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels are more than model.options.max_pixels, {most}")
    if max(width, height) > _LONGEST_SIDES * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {_LONGEST_SIDES} times the other")


def _load_processor(files: Mapping[str, bytes]) -> Any:
    if not any(name in files for name in _SETTINGS):
        raise CheckpointError(
            "the checkpoint has no preprocessor_config.json, so nothing says how images are prepared",
            hint="Publish the checkpoint again with its processor's files.",
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", *_SETTINGS):
            if name in files:
                (Path(folder) / name).write_bytes(files[name])
        factory: Any = AutoImageProcessor
        try:
            return factory.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
        except (ImportError, OSError, ValueError, TypeError) as error:
            message = str(error).replace(folder, "the checkpoint").strip()
            raise CheckpointError(
                f"the checkpoint's image processor cannot be used: {message}",
                hint="Images need Pillow: pip install 'daskinfer[images]'; processors of other code are not run.",
            ) from error


def _make_probe(size: tuple[int, int]) -> Image:
    from PIL import Image

    return Image.new("RGB", size)


def _check_pixels(images: Array) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise InputError(
            f"image: rows are {images.dtype} of the shape {images.shape[1:]}",
            hint="Give uint8 pixels (height, width, 3) or (height, width), or encoded images.",
        )


def _from_array(pixels: Array) -> Image:
    from PIL import Image

    return Image.fromarray(pixels).convert("RGB")
