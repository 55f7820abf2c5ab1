"""The module that does a task."""

from __future__ import annotations

import torch

from daskinfer.models.architecture import keep_float32
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.classify import make_classify
from daskinfer.models.tasks.embed import make_embed
from daskinfer.models.tasks.fields import takes_text
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.score import make_score


def build_task(request: TaskRequest, dtype: str) -> TaskModule:
    """Return the model with the task's head on it, its parameters on the meta device, each in its final precision.

    Parameters
    ----------
    request
        The task on the checkpoint.
    dtype
        Precision of weights and activations: float32, bfloat16 or float16.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot do the task.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> module = build_task(ask_tiny("embed"), "bfloat16")
    >>> [array.name for array in module.inputs], {parameter.dtype for parameter in module.parameters()}
    (['input_ids', 'attention_mask'], {torch.bfloat16})
    """
    module = _make_task(request, dtype)
    keep_float32(module.model, getattr(torch, dtype))
    return module


def _make_task(request: TaskRequest, dtype: str) -> TaskModule:
    if request.task == "forward":
        from daskinfer.models.tasks.forward import make_forward

        return make_forward(request, dtype)
    if not takes_text(request):
        from daskinfer.models.tasks.images import make_image_classify, make_image_embed

        return (make_image_embed if request.task == "embed" else make_image_classify)(request, dtype)
    makers = {"embed": make_embed, "classify": make_classify, "score": make_score}
    return makers[request.task](request, dtype)
