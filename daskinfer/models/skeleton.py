"""Skeleton forward: every stage runs the model's own `forward()`, with stubs for the blocks it does not own.

The model is built on the meta device, without memory for its weights. Blocks before the stage pass on what was
received, the first block after it stops the forward, and whatever the stage must not run raises. torch on the CPU
silently computes garbage from some meta weights, so nothing un-owned keeps a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSequenceClassification

from daskinfer.models.families import ATTENTION, Family, family_of


class Stop(Exception):
    """Ends a forward after the stage's last layer, with the hidden states that leave it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Received(nn.Module):
    """Stands for the embeddings: returns the hidden states that came in."""

    hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the received hidden states (rows, tokens, width)."""
        return self.hidden


class PassThrough(nn.Module):
    """Stands for a block that an earlier stage has run."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the hidden states as they are."""
        return hidden


class Boundary(nn.Module):
    """Stands for the first block of the next stage."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stop the model's forward."""
        raise Stop(hidden)


class Unreachable(nn.Module):
    """Stands for a block that this stage must never run."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse: the skeleton was cut wrongly."""
        raise RuntimeError("a block of another stage was called")


class StageModule(nn.Module):
    """A model of which only the layers [first, last) are there, with its entry and head where it owns them.

    Parameters
    ----------
    config
        Content of config.json.
    task
        `embed` or `classify`.
    first, last
        Layers of the stage.
    """

    def __init__(self, config: Mapping[str, Any], task: str, first: int, last: int) -> None:
        super().__init__()
        self.family: Family = family_of(config)
        depth = self.family.depth(config)
        if not 0 <= first < last <= depth:
            raise ValueError(f"layers {first} to {last} of a model with {depth}")
        self.is_last = last == depth
        self.model = _build(config, self.family, task)
        self.received = Received() if first > 0 else None
        base: nn.Module = getattr(self.model, self.family.prefix, self.model)
        layers: Any = base.get_submodule(self.family.layers)
        for number in range(depth):
            if number < first:
                layers[number] = PassThrough()
            elif number >= last:
                layers[number] = Boundary() if number == last else Unreachable()
        if self.received is not None:
            base.embeddings = self.received
            if self.family.projection is not None and hasattr(base, self.family.projection):
                setattr(base, self.family.projection, PassThrough())
        if not self.is_last:
            for owner in {self.model, base}:
                for name, child in owner.named_children():
                    if child is not base and name not in (*self.family.entry, self.family.layers.partition(".")[0]):
                        setattr(owner, name, Unreachable())
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor, hidden: Tensor | None) -> Any:
        """Run the stage: hidden states (rows, tokens, width), or the model's own output on the last stage."""
        if self.received is not None:
            self.received.hidden = hidden
        try:
            output = self.model(input_ids=ids, attention_mask=mask)
        except Stop as stop:
            return stop.hidden
        finally:
            if self.received is not None:
                self.received.hidden = None
        if not self.is_last:
            raise RuntimeError("the forward ran past the stage's last layer")
        return output


def _build(config: Mapping[str, Any], family: Family, task: str) -> nn.Module:
    settings = CONFIG_MAPPING[family.model_type].from_dict(dict(config))
    # A checkpoint's configuration may ask for outputs that no task reads, or for tuples.
    settings.update({"output_hidden_states": False, "output_attentions": False, "return_dict": True})
    factory: Any = AutoModelForSequenceClassification if task == "classify" else AutoModel
    with torch.device("meta"):
        model: nn.Module = factory.from_config(settings, attn_implementation=ATTENTION)
    if task == "embed" and hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]
    return model
