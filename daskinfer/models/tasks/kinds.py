"""What kind of model a checkpoint is and which columns its outputs make, told without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from daskinfer.errors import CheckpointError
from daskinfer.ids import parse_json
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.outline import TensorSpec

_IMAGE_SETTINGS = {"image_processor_type", "image_mean", "do_resize", "do_rescale"}
_TEXT_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForSequenceClassification")


_KINDS = ("float32", "float64", "int64", "int32", "uint8", "bool")


def is_image_model(config: Mapping[str, Any], files: Mapping[str, bytes]) -> bool:
    """Whether `embed` and `classify` give the model images instead of texts.

    A model of both, such as CLIP, is given images; one that writes text about images is not.

    Parameters
    ----------
    config
        Content of config.json.
    files
        The snapshot's plain files.

    Raises
    ------
    CheckpointError
        Where a processor's file is not JSON.

    Examples
    --------
    >>> is_image_model({"architectures": ["ViTForImageClassification"]}, {}), is_image_model({"vocab_size": 9}, {})
    (True, False)
    """
    architecture = str((config.get("architectures") or [""])[0])
    if "ForImageClassification" in architecture:
        return True
    if architecture.endswith(_TEXT_ENDINGS):
        return False
    processor = _read(files, "processor_config.json").get("image_processor")
    settings = processor or _read(files, "preprocessor_config.json")
    takes_pixels = "num_channels" in config and "vocab_size" not in config
    return bool(_IMAGE_SETTINGS & set(settings)) or takes_pixels


def fields_of_outputs(outputs: Mapping[str, TensorSpec]) -> tuple[OutputField, ...]:
    """Return the columns that a model's outputs make: one value, or one array of a fixed shape, a row.

    Raises
    ------
    CheckpointError
        Where outputs do not have rows first, or differ in shape from batch to batch.

    Examples
    --------
    >>> vectors = TensorSpec(dtype="bfloat16", dims=((0, 1, 0, 0), (384, 0, 0, 0)))
    >>> [(field.kind, field.shape) for field in fields_of_outputs({"embedding": vectors})]
    [('float32', (384,))]
    """
    problems = [f"{name} {problem}" for name, spec in outputs.items() if (problem := find_problem(spec))]
    if problems or not outputs:
        raise CheckpointError(
            f"task forward cannot write the model's outputs: {'; '.join(problems) or 'there are none'}",
            hint="Wrap the model in a function that returns one array of a fixed shape for every row: model.entry.",
        )
    return tuple(
        OutputField(name=name, kind=cast(Any, _kind(spec)), shape=tuple(dim[0] for dim in spec.dims[1:]))
        for name, spec in outputs.items()
    )


def _read(files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = parse_json(files.get(name, b"{}"))
    except ValueError as error:
        raise CheckpointError(f"{name} is not JSON: {error}", hint="Fetch the checkpoint again.") from error
    return content


def _kind(spec: TensorSpec) -> str:
    return "float32" if spec.dtype in ("float16", "bfloat16") else spec.dtype


def find_problem(spec: TensorSpec) -> str | None:
    """Return why an output makes no column, if it makes none.

    Examples
    --------
    >>> find_problem(TensorSpec(dtype="float32", dims=((0, 1, 0, 0), (0, 0, 1, 0), (384, 0, 0, 0))))
    'grows with the padded length in its dimension 1'
    """
    if not spec.dims or spec.dims[0] != (0, 1, 0, 0):
        return "does not have one value for every row"
    for number, (_, per_row, per_token, both) in enumerate(spec.dims[1:], 1):
        if per_row or both:
            return f"grows with the number of rows in its dimension {number}"
        if per_token:
            return f"grows with the padded length in its dimension {number}"
    if _kind(spec) not in _KINDS:
        return f"is {spec.dtype}, which no output format has"
    return None
