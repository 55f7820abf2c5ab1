"""A model with a task's head on it, as one module that can be cut."""

from __future__ import annotations

from torch import Tensor, nn

from daskinfer.models.architecture import stored_name
from daskinfer.spec.outline import InputArray


class TaskModule(nn.Module):
    """Named arrays in, named arrays out; subclasses, one a task, hold the model as `model`.

    Parameters
    ----------
    model
        The model, on the meta device.
    prefixes
        (prefix inside `model`, prefix in the snapshot), the longest first: what names its tensors have there.
    inputs
        Arrays that the forward takes.

    Examples
    --------
    >>> module = TaskModule(nn.Linear(2, 2), prefixes=(("bert.", ""),), inputs=())
    >>> module.stored_name("model.bert.embeddings.weight"), module.stored_name("model.classifier.weight")
    ('embeddings.weight', 'classifier.weight')
    """

    def __init__(self, model: nn.Module, prefixes: tuple[tuple[str, str], ...], inputs: tuple[InputArray, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self._prefixes = prefixes

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the task's arrays, rows first."""
        raise NotImplementedError

    def stored_name(self, name: str) -> str:
        """Return the name in the snapshot of a tensor of this module's `state_dict`."""
        return stored_name(name.removeprefix("model."), self._prefixes)
