"""A checkpoint on its way into a registry, through the project's own tokenizer and task, against plain transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from safetensors.torch import load
from torch import Tensor, nn

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.models.checkpoints.checkpoint import CheckpointFiles
from daskinfer.models.limits import memory_limit
from daskinfer.models.proofs.row_proof import TOLERANCE, find_difference, proof_settings
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.encode import make_encoder, row_length
from daskinfer.models.tasks.fields import takes_text, usual_task
from daskinfer.models.tasks.module import TaskModule
from daskinfer.models.tasks.score import ScoreModule
from daskinfer.models.tasks.sentence import read_sentence
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.units import format_bytes

TEXTS = (
    "The small cat sleeps.",
    "A dog and a RIVER, in 2024!",
    "Stones fall in water",
    "café au lait: naïve façade",
    "one\ttwo  three\nfour",
    "x",
    "The sun is in the river of stone, and the dog sleeps; water falls.",
)
# Part of the free memory that a model may take twice over: as it is stored, and as transformers loads it.
_MEMORY_SHARE = 0.25
_FAILURES = (OSError, ImportError, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def compare_with_transformers(found: CheckpointFiles, directory: Path) -> str:
    """Return how a checkpoint was compared, or why it was not.

    Parameters
    ----------
    found
        What is about to be published.
    directory
        The checkpoint as transformers reads it.

    Raises
    ------
    CheckpointError
        Where tokens or results differ from those of transformers for one of a few texts, one at a time.

    Examples
    --------
    >>> from daskinfer.models.checkpoints.checkpoint import inspect_checkpoint
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = make_tiny_bert(Path("tiny"), layers=1)
    >>> compare_with_transformers(inspect_checkpoint(folder), folder)
    'embed of 7 texts equals plain transformers within 0.0001'
    """
    request = TaskRequest(usual_task(found.architecture), ModelOptions(), found.architecture, found.files)
    needed = 2 * sum(group.size for group in found.groups)
    free = min(psutil.virtual_memory().available, memory_limit() - psutil.Process().memory_info().rss)
    if needed > _MEMORY_SHARE * free:
        return f"not compared: {format_bytes(needed)} of weights are too many for {format_bytes(free)} of free memory"
    try:
        if not takes_text(request):
            return "not compared: it takes no texts"
        module, rows = _fill(build_task(request, "float32"), found), _encode(request)
    except (CheckpointError, RecipeError) as error:
        return f"not compared: {error.message}"
    except _FAILURES as error:
        return f"not compared: task {request.task} cannot be tried: {error}"
    try:
        plain = _Plain(directory, request)
    except _FAILURES as error:
        return f"not compared: transformers cannot read it: {type(error).__name__}"
    worst = 0.0
    with proof_settings(), torch.inference_mode():
        for text, inputs in rows.items():
            try:
                worst = max(worst, _compare(module, plain, text, inputs, request))
            except _PlainFailure as error:
                return f"not compared: transformers cannot run it: {error}"
    return f"{request.task} of {len(rows)} texts equals plain transformers within {TOLERANCE:g}"


class _PlainFailure(Exception):
    """transformers' own model raised."""


class _Plain(nn.Module):
    """A model of transformers that is given what its tokenizer returns, whatever else it is called with."""

    def __init__(self, directory: Path, request: TaskRequest) -> None:
        super().__init__()
        is_masked = "Masked" in request.architecture or "PreTraining" in request.architecture
        names = {
            "embed": "AutoModel",
            "classify": "AutoModelForSequenceClassification",
            "score": "AutoModelForMaskedLM" if is_masked else "AutoModelForCausalLM",
        }
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, **options)
        with _no_progress_bar():
            model: Any = getattr(transformers, names[request.task]).from_pretrained(
                directory, dtype=torch.float32, **options
            )
        if request.task == "embed" and hasattr(model, "encoder") and hasattr(model, "decoder"):
            model = model.get_encoder()
        # What a forward returns is the same without a cache, which some models cannot fill in one go.
        model.config.get_text_config().use_cache = False
        self.model = model.eval()
        self.tokens: Mapping[str, Tensor] = {}

    def forward(self, **_: Tensor) -> Any:
        """Return the model's output for the tokens of the text at hand."""
        return self.model(**self.tokens)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    logging: Any = transformers.utils.logging
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _fill(module: TaskModule, found: CheckpointFiles) -> TaskModule:
    """Give a module the weights that are about to be published."""
    stored: dict[str, Tensor] = {}
    for group in found.groups:
        stored |= load(group.blob())
    wanted = {}
    for name, place in module.state_dict().items():
        tensor = stored[found.tied.get(module.stored_name(name), module.stored_name(name))]
        wanted[name] = tensor.to(place.dtype) if place.is_floating_point() else tensor
    module.load_state_dict(wanted, assign=True)
    return module


def _encode(request: TaskRequest) -> dict[str, dict[str, Tensor]]:
    """Return every text's inputs, one row each, but for texts that cannot be encoded."""
    encoded, refused = make_encoder(request, row_length(request)).encode({"text": TEXTS})
    rows = {}
    for row, text in enumerate(text for number, text in enumerate(TEXTS) if number not in refused):
        # Of a text that is masked in several places, only the first; what was masked there is put back.
        item = row if encoded.variants is None else int(np.searchsorted(encoded.variants.rows, row))
        if item >= len(encoded.lengths):
            continue
        batch = encoded.batch([item], int(encoded.lengths[item]))
        if encoded.variants is not None:
            batch["input_ids"][0, batch["position"]] = batch["target"]
        rows[text] = {name: torch.as_tensor(values) for name, values in batch.items()}
    return rows


def _compare(module: TaskModule, plain: _Plain, text: str, inputs: Mapping[str, Tensor], request: TaskRequest) -> float:
    if request.task == "embed":
        sentence = read_sentence(request)
        text = sentence.prompt + text
        text = text.lower() if sentence.lower_case else text
    length = inputs["input_ids"].shape[1]
    plain.tokens = plain.tokenizer([text], return_tensors="pt", truncation=True, max_length=max(length, 1))
    ours, theirs = inputs["input_ids"][0].tolist(), plain.tokens["input_ids"][0].tolist()
    if ours != theirs:
        raise _refuse(request, text, f"its tokens are {ours[:12]}, but those of transformers {theirs[:12]}")
    try:
        wanted = _run(module, plain, inputs)
    except _FAILURES as error:
        raise _PlainFailure(f"{type(error).__name__}: {error}") from error
    try:
        found = _run(module, module.model, inputs)
    except _FAILURES as error:
        raise _refuse(
            request, text, f"it fails, where transformers does not: {type(error).__name__}: {error}"
        ) from error
    difference = find_difference(found, wanted)
    if difference > TOLERANCE:
        raise _refuse(
            request, text, f"its result differs from that of transformers by {difference:.1g} of the largest number"
        )
    return difference


def _run(module: TaskModule, model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    own, module.model = module.model, model
    try:
        if isinstance(module, ScoreModule):
            with module.only_logits():
                return list(module(**inputs).values())
        return list(module(**inputs).values())
    finally:
        module.model = own


def _refuse(request: TaskRequest, text: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{request.architecture}: task {request.task} on the text {text!r}: {problem}",
        hint="Nothing was published. Save the checkpoint again with save_pretrained, its tokenizer too, and report this.",
    )
