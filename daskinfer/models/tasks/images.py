"""`classify` and `embed` on images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from daskinfer.errors import CheckpointError
from daskinfer.models.architecture import build_model, stored_prefix
from daskinfer.models.preprocessing.images import ImageEncoder
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.classify import score_classes
from daskinfer.models.tasks.fields import find_activation
from daskinfer.models.tasks.module import TaskModule
from daskinfer.spec.outline import InputArray
from daskinfer.spec.recipe.schema import ModelOptions

Prefixes = tuple[tuple[str, str], ...]


class ImageClassifier(TaskModule):
    """`pixel_values` (rows, channels, height, width) in, `scores` (rows, classes) out.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class Model(nn.Module):
    ...     def forward(self, pixel_values):
    ...         return SimpleNamespace(logits=torch.zeros(len(pixel_values), 2))
    >>> image = InputArray(name="pixel_values", dtype="float32", shape=(3, 8, 8))
    >>> ImageClassifier(Model(), (), image, {"num_labels": 2})(pixel_values=torch.zeros(1, 3, 8, 8))["scores"]
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, model: nn.Module, prefixes: Prefixes, image: InputArray, config: Mapping[str, Any]) -> None:
        super().__init__(model, prefixes, (image,))
        self._config = config

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the score of every class, float32."""
        return {"scores": score_classes(self.model(pixel_values=inputs["pixel_values"]), self._config)}


class ImageEmbedder(TaskModule):
    """`pixel_values` (rows, channels, height, width) in, `embedding` (rows, width) out.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class Model(nn.Module):
    ...     def forward(self, pixel_values):
    ...         return SimpleNamespace(pooler_output=torch.tensor([[3.0, 4.0]]))
    >>> image = InputArray(name="pixel_values", dtype="float32", shape=(3, 8, 8))
    >>> ImageEmbedder(Model(), (), image, ModelOptions())(pixel_values=torch.zeros(1, 3, 8, 8))["embedding"]
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, model: nn.Module, prefixes: Prefixes, image: InputArray, options: ModelOptions) -> None:
        super().__init__(model, prefixes, (image,))
        self._options = options

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return one vector an image, float32."""
        output: Any = self.model(pixel_values=inputs["pixel_values"])
        vector = _pool(output, self._options.pooling).float()
        if self._options.normalize:
            vector = torch.nn.functional.normalize(vector, p=2, dim=1)
        return {"embedding": vector}


class VisionTower(nn.Module):
    """The image half of a model of images and texts, under the names that it has in the whole.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class Vision(nn.Module):
    ...     def forward(self, pixel_values):
    ...         return SimpleNamespace(pooler_output=torch.zeros(1, 4))
    >>> tower = VisionTower(Vision(), nn.Linear(4, 2))
    >>> tower(torch.zeros(1, 3, 8, 8)).pooler_output.shape
    torch.Size([1, 2])
    """

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module | None) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection

    def forward(self, pixel_values: Tensor) -> Any:
        """Return the tower's output; `pooler_output` is projected where the model has a projection."""
        output = self.vision_model(pixel_values=pixel_values)
        if self.visual_projection is not None:
            output.pooler_output = self.visual_projection(output.pooler_output)
        return output


def make_image_classify(request: TaskRequest, dtype: str) -> TaskModule:
    """Return the checkpoint's own classifier with its scores.

    Raises
    ------
    CheckpointError
        Where it has no trained image classifier.

    Examples
    --------
    >>> import json
    >>> size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    >>> config = {"model_type": "vit", "num_labels": 5, **size}
    >>> settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    >>> files = {"config.json": json.dumps(config).encode(), "preprocessor_config.json": json.dumps(settings).encode()}
    >>> request = TaskRequest("classify", ModelOptions(), "ViTForImageClassification", files)
    >>> make_image_classify(request, "float32").inputs[0].shape
    (3, 8, 8)
    """
    if "ForImageClassification" not in request.architecture:
        raise CheckpointError(
            f"{request.architecture} cannot classify: it has no trained image classifier",
            hint="Use a checkpoint whose architecture ends in ForImageClassification, or the task embed.",
        )
    find_activation(request.config)
    model = build_model(request.config, request.architecture, dtype, request.files)
    return ImageClassifier(model, _prefixes(model), _find_input(model, request), request.config)


def make_image_embed(request: TaskRequest, dtype: str) -> TaskModule:
    """Return the part of the checkpoint that makes one vector an image.

    That is the base model of the checkpoint's own class, so that nothing untrained takes part; of a model of images
    and texts, its vision tower with the projection. `auto` pooling takes the model's own pooled output where it has
    one, else the mean over tokens.

    Examples
    --------
    >>> import json
    >>> size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    >>> settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    >>> files = {"config.json": json.dumps({"model_type": "vit", **size}).encode()}
    >>> files["preprocessor_config.json"] = json.dumps(settings).encode()
    >>> type(make_image_embed(TaskRequest("embed", ModelOptions(), "ViTModel", files), "float32").model).__name__
    'ViTModel'
    """
    if request.options.pooling not in ("auto", "cls", "mean"):
        raise CheckpointError(
            f"model.options.pooling is {request.options.pooling}, which images do not have",
            hint="Use auto, cls or mean.",
        )
    model = build_model(request.config, request.architecture, dtype, request.files)
    if getattr(model.config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{request.architecture} cannot embed images: what its decoder returns is no vector of the image",
            hint="Use the task forward with arrays of pixel values.",
        )
    image = _find_input(model, request)
    vision: Any = getattr(model, "vision_model", None)
    # A model that writes texts about images may pool them too, but has no vector of one beside a text's.
    is_pair = hasattr(model, "get_text_features") or not hasattr(model, "get_image_features")
    if isinstance(vision, nn.Module) and is_pair:
        tower = VisionTower(vision, getattr(model, "visual_projection", None)).eval()
        return ImageEmbedder(tower, _prefixes(model), image, request.options)
    if hasattr(model, "get_image_features"):
        model.forward = model.get_image_features  # type: ignore[assignment]
        return ImageEmbedder(model, _prefixes(model), image, request.options)
    prefix = stored_prefix(model).removesuffix(".")
    # Some base models have a part of their own under the name that other classes have them by: DINOv3's `model`.
    is_base = not prefix or isinstance(model, _base_classes(model))
    base: Any = model if is_base else getattr(model, prefix)
    pooler = getattr(base, "pooler", None)
    if request.options.pooling != "auto" and pooler is not None and next(pooler.parameters(), None) is not None:
        base.pooler = None  # its output is not asked for, and the checkpoint may lack it
    return ImageEmbedder(base, _prefixes(model) if is_base else (), image, request.options)


def _base_classes(model: nn.Module) -> tuple[type, ...]:
    """Return the classes that transformers has as base models of a model's configuration."""
    mapping: Any = transformers.AutoModel._model_mapping
    found = mapping.get(type(model.config), ())
    return found if isinstance(found, tuple) else (found,)


def _find_input(model: nn.Module, request: TaskRequest) -> InputArray:
    """Return what the processor makes of an image; refuse one that tells the model more than that."""
    encoder = ImageEncoder(request.files)
    if more := sorted(encoder.others & set(inspect.signature(model.forward).parameters)):
        raise CheckpointError(
            f"the checkpoint's image processor gives {', '.join(more)} beside the pixels, and {request.architecture} uses it",
            hint="Set a fixed size without padding in preprocessor_config.json, or use the task forward with arrays.",
        )
    return encoder.input


def _prefixes(model: nn.Module) -> Prefixes:
    prefix = stored_prefix(model)
    return ((prefix, ""),) if prefix else ()


def _pool(output: Any, pooling: str) -> Tensor:
    if isinstance(output, Tensor):
        return _flatten(output, "the model")
    pooled: Any = getattr(output, "image_embeds", None)
    pooled = getattr(output, "pooler_output", None) if pooled is None else pooled
    if pooling == "auto" and pooled is not None:
        return _flatten(pooled, type(output).__name__)
    hidden: Tensor | None = getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.ndim not in (3, 4):
        raise CheckpointError(
            f"{type(output).__name__} has neither a pooled output nor a last hidden state of an image",
            hint="Use the task forward with arrays of pixel values.",
        )
    if pooling == "cls":
        if hidden.ndim != 3:
            raise CheckpointError("model.options.pooling is cls, but the model has no tokens", hint="Use auto or mean.")
        return hidden[:, 0]
    return hidden.float().mean(1) if hidden.ndim == 3 else hidden.float().flatten(2).mean(2)


def _flatten(pooled: Any, name: str) -> Tensor:
    """Return (rows, width) from what may have a height and a width of 1 behind it; refuse what is one vector a patch."""
    if not isinstance(pooled, Tensor) or any(size != 1 for size in pooled.shape[2:]):
        found = list(pooled.shape[1:]) if isinstance(pooled, Tensor) else f"a {type(pooled).__name__}"
        raise CheckpointError(
            f"{name} has no vector of an image: its pooled output is {found}, one vector for every patch",
            hint="Use the task forward with arrays of pixel values, or the vision tower's own checkpoint.",
        )
    return pooled.flatten(1)
