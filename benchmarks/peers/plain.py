"""The computation by hand, with transformers and torch alone: what most peers spread over processes.

Texts are tokenised, sorted by length and packed into batches of a number of padded tokens, images into batches of a
number of rows; results come back in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.work import Work

Array = Any
Forward = Callable[..., Array]
"""From a batch's arrays to one array with an entry for each row."""


def pack(lengths: list[int], tokens: int) -> list[list[int]]:
    """Return batches of positions, longest first, each within `tokens` padded tokens where more than one row fits."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def split(rows: int, size: int) -> list[list[int]]:
    """Return the positions in order, `size` at a time."""
    return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]


class Computation:
    """Does a case's work on any list of rows, with whatever computes a batch."""

    def __init__(self, work: Work, forward: Forward) -> None:
        import transformers

        library: Any = transformers

        self._work = work
        self._forward = forward
        if work.task == "classify":
            self._processor: Any = library.AutoImageProcessor.from_pretrained(work.model, backend="pil")
        else:
            self._tokenizer: Any = library.AutoTokenizer.from_pretrained(work.model, local_files_only=True)

    def __call__(self, rows: list[str]) -> Array:
        batches = self.batches(rows)
        result = None
        for positions, arrays in batches:
            part = np.asarray(self._forward(*arrays))
            if result is None:
                result = np.empty((len(rows), *part.shape[1:]), np.float32)
            result[positions] = part
        return result

    def batches(self, rows: list[str]) -> Iterable[tuple[list[int], tuple[Array, ...]]]:
        """Yield positions and the arrays that a model is given."""
        if self._work.task == "classify":
            for positions in split(len(rows), self._work.batch_rows):
                yield positions, (self._read_images([rows[position] for position in positions]),)
            return
        tokens = self._tokenizer(
            list(rows),
            truncation=True,
            max_length=self._work.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for positions in pack([len(row) for row in tokens], self._work.batch_tokens):
            ids = np.full((len(positions), len(tokens[positions[0]])), self._tokenizer.pad_token_id, np.int64)
            mask = np.zeros_like(ids)
            for number, position in enumerate(positions):
                ids[number, : len(tokens[position])] = tokens[position]
                mask[number, : len(tokens[position])] = 1
            yield positions, (ids, mask)

    def _read_images(self, paths: list[str]) -> Array:
        from PIL import Image

        images = [Image.open(path).convert("RGB") for path in paths]
        return self._processor(images, return_tensors="np")["pixel_values"]


def build_module(work: Work, **options: Any) -> Any:
    """Return a module from a batch's tensors to what a row's result is."""
    import torch
    import transformers
    from torch.nn import functional

    kinds = {"embed": "AutoModel", "score": "AutoModelForCausalLM", "classify": "AutoModelForImageClassification"}
    loader = getattr(transformers, kinds[work.task])
    model = loader.from_pretrained(work.model, local_files_only=True, dtype=torch.float32, **options).eval()

    class Embed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    class Score(Embed):
        def forward(self, ids: Any, mask: Any) -> Any:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            known = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
            return (known * mask[:, 1:]).sum(1)

    class Classify(Embed):
        def forward(self, pixels: Any) -> Any:  # type: ignore[override]
            return self.model(pixel_values=pixels).logits.softmax(-1)

    return {"embed": Embed, "score": Score, "classify": Classify}[work.task]()


def torch_forward(work: Work, threads: int, onednn: bool = False) -> Forward:
    """Return a forward by torch, its linear layers by torch's default product or by oneDNN's."""
    import torch

    torch.set_num_threads(threads)
    module = build_module(work)
    if onednn:
        use_onednn(module)

    def forward(*arrays: Array) -> Array:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, arrays)).numpy()

    return forward


def use_onednn(module: Any) -> None:
    """Compute the linear layers of a module by oneDNN."""
    import torch
    from transformers.pytorch_utils import Conv1D

    multiply = torch.ops.mkldnn._linear_pointwise
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear | Conv1D):
            weight = layer.weight.detach()
            weight = weight if isinstance(layer, torch.nn.Linear) else weight.t().contiguous()
            bias = None if layer.bias is None else layer.bias.detach()

            def forward(rows: Any, weight: Any = weight, bias: Any = bias) -> Any:
                return multiply(rows, weight, bias, "none", [], "")

            layer.__dict__["forward"] = forward


@cache
def load_here(work: Work, onednn: bool = False) -> Computation:
    """Return the computation on one core, loaded once in this process."""
    computation = Computation(work, torch_forward(work, 1, onednn))
    work.mark_ready()
    return computation
