"""What each task writes, told from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskinfer.errors import CheckpointError
from daskinfer.models.families import CLASSIFIER_SUFFIX, family_of
from daskinfer.spec.job import OutputField
from daskinfer.spec.recipe import ModelOptions


def task_fields(task: str, config: Mapping[str, Any], options: ModelOptions) -> tuple[OutputField, ...]:
    """Return the columns that a task writes.

    `embed` writes `embedding` (width,); `classify` writes the best class as `label`, its `score`, and all `scores`
    (classes,) in the order of `label_names`.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot do the task.
    """
    family = family_of(config)
    if task == "embed":
        return (OutputField(name="embedding", kind="float32", shape=(family.hidden(config),)),)
    if task == "classify":
        names = label_names(config)
        use_sigmoid(config)
        return (
            OutputField(name="label", kind="string"),
            OutputField(name="score", kind="float32"),
            OutputField(name="scores", kind="float32", shape=(len(names),)),
        )
    raise CheckpointError(
        f"task {task!r} is not supported by {family.model_type} models", hint="Use embed or classify."
    )


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in the order of the classifier's outputs.

    Raises
    ------
    CheckpointError
        If the checkpoint has no sequence classifier.
    """
    architecture = str((config.get("architectures") or ["?"])[0])
    if not architecture.endswith(CLASSIFIER_SUFFIX):
        raise CheckpointError(
            f"{architecture} cannot classify: it has no trained sequence classifier",
            hint=f"Use a checkpoint whose architecture ends in {CLASSIFIER_SUFFIX}, or the task embed.",
        )
    names: Mapping[Any, Any] = config.get("id2label") or {}
    count = len(names) or int(config.get("num_labels", 2))
    by_number = {int(number): str(name) for number, name in names.items()}
    return tuple(by_number.get(number, f"LABEL_{number}") for number in range(count))


def use_sigmoid(config: Mapping[str, Any]) -> bool:
    """Return whether every class is scored by itself (sigmoid) instead of all against each other (softmax).

    As transformers' own pipeline: several labels at once, or a single one, take the sigmoid.

    Raises
    ------
    CheckpointError
        For regression models, whose output is no probability.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        raise CheckpointError(
            "config.json: problem_type is regression, which has no classes",
            hint="Use a checkpoint that was trained to classify.",
        )
    return problem == "multi_label_classification" or len(label_names(config)) == 1
