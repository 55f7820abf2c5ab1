"""What sentence-transformers' files say of a checkpoint: pooling, prompts, and what follows the pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.ids import parse_json
from daskinfer.models.preprocessing.textconfig import hidden_width
from daskinfer.models.request import TaskRequest

# Under their names in a recipe, in the order in which sentence-transformers joins several.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = frozenset(
    ["ELU", "GELU", "Identity", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Tanh"]
)
# Dropout does nothing outside training.
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
TEXT_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""What the Transformer module's settings may be called; the first that is there counts."""
# What the Transformer module's settings may say besides without changing anything; newer versions write them out.
_PLAIN_SETTINGS: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
}
_PLAIN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
# Arguments for loading that change no value of the whole model in its own precision.
_WITHOUT_EFFECT = frozenset(
    [
        "add_pooling_layer",
        "attn_implementation",
        "cache_dir",
        "device_map",
        "dtype",
        "local_files_only",
        "low_cpu_mem_usage",
        "padding_side",
        "revision",
        "token",
        "torch_dtype",
        "trust_remote_code",
        "use_fast",
        "use_safetensors",
    ]
)
_LOADING = ("model_args", "config_args", "tokenizer_args", "model_kwargs", "config_kwargs", "processor_kwargs")
_UNSUPPORTED = "Choose a checkpoint with Transformer, Pooling, Dense and Normalize modules only."


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer on the pooled vector."""

    path: str
    """Folder of the module, also its name in the model: `2_Dense`."""
    in_features: int
    out_features: int
    bias: bool
    activation: str
    """A class of `torch.nn`."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """How a text becomes one vector."""

    pooling: tuple[str, ...]
    """Modes whose vectors are joined."""
    include_prompt: bool
    """Whether the prompt's tokens are pooled too."""
    steps: tuple[Dense | None, ...]
    """What follows the pooling; None scales to length 1."""
    prompt: str
    """Text put before every row's."""
    max_length: int | None
    """Longest row in tokens."""
    lower_case: bool
    """Whether texts are lower-cased first."""
    strip: bool
    """Whether white space around a text, its prompt included, is taken off first."""
    width: int
    """Length of the vector."""


def read_sentence(request: TaskRequest) -> Sentence:
    """Return how `embed` makes vectors: as the recipe's options say, else the checkpoint's files, else mean and unit length.

    Raises
    ------
    CheckpointError
        For modules that are not supported.
    RecipeError
        For prompts that do not exist, and options that do not fit the checkpoint.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> sentence = read_sentence(ask_tiny("embed", pooling="cls", normalize=False))
    >>> sentence.pooling, sentence.steps, sentence.width
    (('cls',), (), 32)
    """
    options = request.options
    modules = read_json(request, "modules.json") or []
    _check_order([_kind_of(module) for module in modules])
    pooling: Mapping[str, Any] = {}
    steps: list[Dense | None] = []
    for module in modules:
        kind, path = _kind_of(module), str(module.get("path", ""))
        if kind == "Pooling":
            pooling = read_json(request, f"{path}/config.json", needed=True)
        elif kind == "Dense":
            steps.append(_read_dense(path, read_json(request, f"{path}/config.json", needed=True)))
        elif kind == "Normalize":
            steps.append(None)
    if options.normalize is False:
        steps = [step for step in steps if step is not None]
    elif (options.normalize is True or not modules) and (not steps or steps[-1] is not None):
        steps.append(None)
    modes = _read_modes(pooling) if options.pooling == "auto" else (options.pooling,)
    text = _read_text_settings(request)
    return Sentence(
        pooling=modes,
        include_prompt=bool(pooling.get("include_prompt", True)),
        steps=tuple(steps),
        prompt=_choose_prompt(request),
        max_length=text.get("max_seq_length"),
        lower_case=bool(text.get("do_lower_case", False)),
        strip=bool(modules),
        width=_follow(hidden_width(request.config) * len(modes), steps),
    )


def read_json(request: TaskRequest, path: str, needed: bool = False) -> Any:
    """Return the content of a snapshot's JSON file; None where it is not there and not needed.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> read_json(ask_tiny("embed"), "config.json")["model_type"], read_json(ask_tiny("embed"), "modules.json")
    ('bert', None)
    """
    if path not in request.files:
        if needed:
            raise CheckpointError(f"modules.json names {path}, which is missing", hint="Fetch the checkpoint again.")
        return None
    try:
        return parse_json(request.files[path])
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", hint="Fetch the checkpoint again.") from error


def _kind_of(module: Mapping[str, Any]) -> str:
    name = str(module.get("type"))
    kind = name.rpartition(".")[2]
    if not name.startswith("sentence_transformers.") or kind not in _MODULES:
        raise CheckpointError(f"modules.json: a module of type {name} is not supported", hint=_UNSUPPORTED)
    return kind


def _check_order(kinds: list[str]) -> None:
    """Refuse modules in another order than a model, its pooling, and what follows them."""
    told = [kind for kind in kinds if kind != "Dropout"]
    if told and (told[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(told[2:])):
        raise CheckpointError(
            f"modules.json: {', '.join(told)} are not a Transformer, a Pooling, and what follows them",
            hint=_UNSUPPORTED,
        )


def _read_text_settings(request: TaskRequest) -> Mapping[str, Any]:
    """Return what the Transformer module's settings say of texts; refuse what they say besides."""
    name = next((name for name in TEXT_SETTINGS if name in request.files), "")
    settings: Mapping[str, Any] = read_json(request, name) or {}
    unknown = dict(settings)
    for key in ("max_seq_length", "do_lower_case"):
        unknown.pop(key, None)
    unknown.pop("unpad_inputs", None)  # how it is computed, not what
    for key in _LOADING:
        given = unknown.pop(key, None) or {}
        unknown |= {f"{key}.{one}": value for one, value in given.items() if one not in _WITHOUT_EFFECT}
    # Of a model of texts and more, only what is done with texts counts.
    modalities = unknown.get("modality_config")
    if isinstance(modalities, Mapping) and modalities.get("text") == _PLAIN_TEXT:
        del unknown["modality_config"]
    for key, value in unknown.items():
        if _PLAIN_SETTINGS.get(key) == value:
            continue
        if value:
            raise CheckpointError(
                f"{name}: {key} is {value!r}, which is not supported", hint="Take it out and publish again."
            )
    return settings


def _read_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is not None:
        names = [named] if isinstance(named, str) else list(named)
        modes = tuple(str(name).removesuffix("_tokens") for name in names)
    else:
        # What is not mentioned is off, but for the mean.
        modes = tuple(mode for key, mode in _FLAGS.items() if config.get(key, mode == "mean"))
    if not modes:
        raise CheckpointError("the checkpoint's Pooling has no mode", hint="Set model.options.pooling.")
    for mode in modes:
        if mode not in _FLAGS.values():
            raise CheckpointError(
                f"the checkpoint's pooling mode {mode!r} is not supported", hint="Set model.options.pooling."
            )
    return modes


def _read_dense(path: str, config: Mapping[str, Any]) -> Dense:
    where = f"{path}/config.json"
    module, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
    if not module.startswith("torch.nn") or activation not in _ACTIVATIONS:
        raise CheckpointError(f"{where}: activation_function {module}.{activation} is not supported", hint=_UNSUPPORTED)
    names = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if config.get("use_residual") or names != {"sentence_embedding"}:
        raise CheckpointError(f"{where}: only a plain layer on the sentence embedding is supported", hint=_UNSUPPORTED)
    inner, outer = config.get("in_features"), config.get("out_features")
    if not isinstance(inner, int) or not isinstance(outer, int):
        raise CheckpointError(
            f"{where}: in_features is {inner}, out_features {outer}", hint="Fetch the checkpoint again."
        )
    return Dense(path, inner, outer, bool(config.get("bias", True)), activation)


def _follow(width: int, steps: list[Dense | None]) -> int:
    for step in steps:
        if step is not None:
            if step.in_features != width:
                raise RecipeError(
                    f"{step.path} of the checkpoint takes vectors of {step.in_features} numbers, but pooling makes {width}",
                    hint="Leave model.options.pooling to the checkpoint: auto.",
                )
            width = step.out_features
    return width


def _choose_prompt(request: TaskRequest) -> str:
    options = request.options
    if options.prompt is not None and options.prompt_name is not None:
        raise RecipeError("model.options has both prompt and prompt_name", hint="Give one of them.")
    settings = read_json(request, "config_sentence_transformers.json") or {}
    prompts: Mapping[str, str] = settings.get("prompts") or {}
    if settings.get("truncate_dim"):
        raise CheckpointError(
            f"config_sentence_transformers.json: truncate_dim is {settings['truncate_dim']}, which is not supported",
            hint="Take it out, publish again, and cut the vectors that come out.",
        )
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise CheckpointError(
            f"config_sentence_transformers.json: model_type {settings['model_type']} is not supported",
            hint="Choose a checkpoint of a SentenceTransformer.",
        )
    if options.prompt is not None:
        return options.prompt
    name = options.prompt_name or settings.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(prompts)
        raise RecipeError(
            f"the checkpoint has no prompt named {name!r}",
            hint=f"It has {known}." if known else "It has none; write the text itself as model.options.prompt.",
        )
    return prompts[name]
