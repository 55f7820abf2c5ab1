"""The plain way: transformers' own model, whole, in this process. What staged output is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from daskinfer.ids import parse_json
from daskinfer.models.execution.kernels import use_kernels
from daskinfer.spec.kernels import LinearKernels
from daskinfer.spec.recipe.schema import ModelOptions

Batch = tuple[NDArray[np.int32], NDArray[np.int32]] | Mapping[str, NDArray[np.int64]]
_JOINED = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def run_unsplit(
    directory: Path,
    microbatches: Iterable[Batch],
    *,
    task: str = "embed",
    options: ModelOptions | None = None,
    dtype: str = "float32",
    threads: int = 1,
    kernels: LinearKernels | None = None,
    trust_code: bool = False,
) -> list[NDArray[np.float32]]:
    """Return what transformers' own model gives for each microbatch, by `from_pretrained` and the plainest code.

    Parameters
    ----------
    directory
        A local checkpoint directory.
    microbatches
        Token ids (rows, tokens) and lengths (rows,) of each, or the model's inputs by name.
    task, options, dtype
        As in a recipe.
    threads
        Cores to compute with; bits may depend on it.
    kernels
        What computes linear layers, by default torch; bits depend on it.
    trust_code
        Run the code that comes with the checkpoint, in transformers' own way.

    Returns
    -------
    list of numpy.ndarray
        `embed`: embeddings (rows, width). `classify`: logits (rows, classes). `score`: log-probabilities (rows,); with
        `per_token` those of a causal model's tokens, (rows, tokens), NaN where nothing is predicted.

    Examples
    --------
    >>> from daskinfer.testing.models.tinymodels import make_tiny_bert
    >>> folder = make_tiny_bert(Path("tiny"), layers=1)
    >>> batch = {"input_ids": np.array([[2, 5, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    >>> [embeddings.shape for embeddings in run_unsplit(folder, [batch])]
    [(1, 32)]
    """
    options = options or ModelOptions()
    architecture = parse_json((directory / "config.json").read_text())["architectures"][0]
    is_masked = architecture.endswith(("ForMaskedLM", "ForPreTraining"))
    factory: Any = {
        "embed": AutoModel,
        "classify": AutoModelForSequenceClassification,
        "score": AutoModelForMaskedLM if is_masked else AutoModelForCausalLM,
    }[task]
    model = factory.from_pretrained(
        directory, local_files_only=True, dtype=getattr(torch, dtype), trust_remote_code=trust_code
    ).eval()
    if task == "embed" and hasattr(model, "encoder") and hasattr(model, "decoder"):
        model = model.get_encoder()
    # transformers leaves the weights in the mapped file, at addresses where some kernels sum in another order.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    torch.set_num_threads(threads)
    results: list[NDArray[np.float32]] = []
    forward = use_kernels(lambda inputs, _: model(**inputs), kernels or LinearKernels())
    with torch.inference_mode():
        for batch in microbatches:
            inputs = _to_tensors(batch)
            output: Any = forward({name: inputs[name] for name in ("input_ids", "attention_mask")}, ())
            if task == "classify":
                results.append(output.logits.float().numpy())
            elif task == "embed":
                results.append(_embed(output.last_hidden_state.float(), inputs, directory, options, dtype).numpy())
            elif is_masked:
                results.append(_score_masked(output.logits, inputs).numpy())
            else:
                results.append(_score_causal(output.logits, inputs, options.per_token).numpy())
    return results


def _to_tensors(batch: Batch) -> dict[str, Tensor]:
    if isinstance(batch, Mapping):
        return {name: torch.as_tensor(values) for name, values in batch.items()}
    ids, lengths = batch
    mask = torch.arange(ids.shape[1]) < torch.as_tensor(lengths)[:, None]
    return {"input_ids": torch.as_tensor(ids).long(), "attention_mask": mask.long()}


def _score_causal(logits: Tensor, inputs: dict[str, Tensor], per_token: bool) -> Tensor:
    known = logits[:, :-1].float().log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[:, :, 0]
    mask = inputs["attention_mask"][:, 1:] == 1
    if not per_token:
        return torch.where(mask, known, 0.0).sum(1)
    return torch.cat([torch.full((len(known), 1), torch.nan), torch.where(mask, known, torch.nan)], 1)


def _score_masked(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, inputs["position"]].float().log_softmax(-1)[rows, inputs["target"]]


def _embed(hidden: Tensor, inputs: dict[str, Tensor], directory: Path, options: ModelOptions, dtype: str) -> Tensor:
    listed = directory / "modules.json"
    modules: list[dict[str, str]] = parse_json(listed.read_text()) if listed.exists() else []
    kinds = {module["path"]: module["type"].rpartition(".")[2] for module in modules}
    settings = {
        path: parse_json((directory / path / "config.json").read_text())
        for path, kind in kinds.items()
        if kind in ("Pooling", "Dense")
    }
    pooling: dict[str, Any] = next((settings[path] for path, kind in kinds.items() if kind == "Pooling"), {})
    mask = inputs["attention_mask"].clone()
    if not pooling.get("include_prompt", True):
        mask[:, : _count_prompt(directory, options)] = 0
    modes = [mode for mode in _JOINED if pooling.get(f"pooling_mode_{mode}", mode == "mean_tokens")]
    if options.pooling != "auto" or not modes:
        modes = ["mean" if options.pooling == "auto" else options.pooling]
    vector = torch.cat([_pool(hidden, mask, mode.removesuffix("_tokens").removesuffix("_token")) for mode in modes], 1)
    for path, kind in kinds.items():
        if kind == "Dense":
            weights = load_file(directory / path / "model.safetensors")
            cast = {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}
            activation = getattr(nn, settings[path]["activation_function"].rpartition(".")[2])()
            product = nn.functional.linear(
                vector.to(getattr(torch, dtype)), cast["linear.weight"], cast.get("linear.bias")
            )
            vector = activation(product).float()
    said = "Normalize" in kinds.values() or not modules
    if said if options.normalize == "auto" else options.normalize:
        vector = nn.functional.normalize(vector, dim=1)
    return vector


def _pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    rows = torch.arange(len(hidden))
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[rows, torch.stack([row.nonzero().max() for row in mask])]
    if mode == "max":
        return torch.stack([row[kept == 1].max(0).values for row, kept in zip(hidden, mask, strict=True)])
    weights = mask * torch.arange(1, mask.shape[1] + 1) if mode == "weightedmean" else mask
    spread = weights[:, :, None].expand(hidden.shape).float()
    count = spread.sum(1).clamp(min=1e-9)
    return (hidden * spread).sum(1) / (count.sqrt() if mode == "mean_sqrt_len" else count)


def _count_prompt(directory: Path, options: ModelOptions) -> int:
    prompt = options.prompt
    if prompt is None:
        settings = parse_json((directory / "config_sentence_transformers.json").read_text())
        prompt = settings["prompts"][options.prompt_name or settings["default_prompt_name"]]
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)
