"""What each task reads and writes, told from the snapshot's plain files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from daskinfer.errors import CheckpointError, RecipeError
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.kinds import fields_of_outputs, is_image_model
from daskinfer.models.tasks.sentence import read_json, read_sentence
from daskinfer.spec.job.record import OutputField
from daskinfer.spec.outline import TensorSpec

Activation = Literal["softmax", "sigmoid", "identity"]

CLASSIFIER = "ForSequenceClassification"
# Models of images and texts are asked for texts alone.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "WithLMHead", "ForConditionalGeneration", "BertGenerationDecoder")
_MASKED = ("ForMaskedLM", "BertForPreTraining")
# Everything else embeds.
_USUAL_TASKS = {"Classification": "classify", "ForMaskedLM": "score", "ForCausalLM": "score", "LMHeadModel": "score"}


def usual_task(architecture: str) -> str:
    """Return what a checkpoint is most likely asked for, by the end of its class's name.

    Examples
    --------
    >>> usual_task("BertForSequenceClassification"), usual_task("LlamaForCausalLM"), usual_task("BertModel")
    ('classify', 'score', 'embed')
    """
    return next((task for suffix, task in _USUAL_TASKS.items() if architecture.endswith(suffix)), "embed")


def takes_text(request: TaskRequest) -> bool:
    """Whether the task is done on texts, not on images or arrays.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> takes_text(TaskRequest("embed", ModelOptions(), "BertModel", {"config.json": b"{}"}))
    True
    >>> takes_text(TaskRequest("embed", ModelOptions(), "ViTModel", {"config.json": b'{"num_channels": 3}'}))
    False
    """
    if request.task == "forward":
        return False
    return request.task == "score" or not is_image_model(request.config, request.files)


def task_wants(request: TaskRequest) -> dict[str, Literal["text", "image", "array"]]:
    """Return the columns that a task reads, and what their values are.

    Raises
    ------
    CheckpointError
        If the model is a user's own, and the task another than `forward`.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> task_wants(TaskRequest("embed", ModelOptions(), "ViTModel", {"config.json": b'{"num_channels": 3}'}))
    {'image': 'image'}
    """
    if request.task == "forward":
        return {array.name: "array" for array in request.arrays}
    if request.entry is not None:
        raise CheckpointError(
            f"model.task is {request.task}, but {request.entry.function} is a model of your own",
            hint="Such models have one task: forward.",
        )
    return {"text": "text"} if takes_text(request) else {"image": "image"}


def task_fields(
    request: TaskRequest, max_length: int, outputs: Mapping[str, TensorSpec] | None = None
) -> tuple[OutputField, ...]:
    """Return the columns that a task writes.

    Parameters
    ----------
    request
        The task.
    max_length
        Longest row in tokens; see `row_length`.
    outputs
        What the outline says the model returns; needed for `forward` and for embeddings.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot do the task.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> request = TaskRequest("embed", ModelOptions(), "BertModel", {"config.json": b'{"hidden_size": 384}'})
    >>> [(field.name, field.kind, field.shape) for field in task_fields(request, max_length=256)]
    [('embedding', 'float32', (384,))]
    """
    if takes_text(request):
        fields = text_fields(request, max_length)
        # A projection has a width of its own.
        return fields_of_outputs(outputs) if request.task == "embed" and outputs else fields
    return class_fields(request.config) if request.task == "classify" else fields_of_outputs(outputs or {})


def text_fields(request: TaskRequest, max_length: int) -> tuple[OutputField, ...]:
    """Return the columns that `embed`, `classify` or `score` writes of texts.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot do the task.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> request = TaskRequest("score", ModelOptions(per_token=True), "GPT2LMHeadModel", {"config.json": b"{}"})
    >>> [field.name for field in text_fields(request, max_length=256)]
    ['logprob', 'num_tokens', 'perplexity', 'token_logprobs', 'token_ids']
    """
    options = request.options
    if request.task != "embed" and (options.prompt is not None or options.prompt_name is not None):
        raise RecipeError(
            f"model.options: task {request.task} takes no prompt", hint="Leave out prompt and prompt_name."
        )
    if request.task == "embed":
        return (OutputField(name="embedding", kind="float32", shape=(read_sentence(request).width,)),)
    if request.task == "classify":
        _check_classifier(request)
        return class_fields(request.config)
    score_kind(request)
    fields = (
        OutputField(name="logprob", kind="float32"),
        OutputField(name="num_tokens", kind="int64"),
        OutputField(name="perplexity", kind="float32"),
    )
    tokens = (
        OutputField(name="token_logprobs", kind="float32", shape=(max_length,)),
        OutputField(name="token_ids", kind="int64", shape=(max_length,)),
    )
    return fields + tokens if options.per_token else fields


def class_fields(config: Mapping[str, Any]) -> tuple[OutputField, ...]:
    """Return the columns of every classifier: the best class, its score, and all scores in `label_names`' order.

    Of a regression they are its largest value, the name of that, and all values.

    Examples
    --------
    >>> [(field.name, field.kind, field.shape) for field in class_fields({"num_labels": 5})]
    [('label', 'string', ()), ('score', 'float32', ()), ('scores', 'float32', (5,))]
    """
    find_activation(config)
    return (
        OutputField(name="label", kind="string"),
        OutputField(name="score", kind="float32"),
        OutputField(name="scores", kind="float32", shape=(len(label_names(config)),)),
    )


def score_kind(request: TaskRequest) -> Literal["causal", "masked"]:
    """Return how a token is predicted: from those before it, or from all others, as the head's name says.

    Whether the model keeps to it is tried when it is traced.

    Raises
    ------
    CheckpointError
        If the checkpoint has no trained head that predicts tokens.

    Examples
    --------
    >>> from daskinfer.spec.recipe.schema import ModelOptions
    >>> score_kind(TaskRequest("score", ModelOptions(), "BertForMaskedLM", {}))
    'masked'
    >>> score_kind(TaskRequest("score", ModelOptions(), "BertModel", {}))
    Traceback (most recent call last):
        ...
    daskinfer.errors.CheckpointError: BertModel cannot score a text: it predicts no tokens
    Use a checkpoint whose architecture ends in ForCausalLM, LMHeadModel or ForMaskedLM.
    """
    name, config = request.architecture, request.config
    if name.endswith(_MASKED):
        return "masked"
    if config.get("is_encoder_decoder") or not name.endswith(_CAUSAL):
        reason = (
            "an encoder-decoder needs a second text" if config.get("is_encoder_decoder") else "it predicts no tokens"
        )
        raise CheckpointError(
            f"{name} cannot score a text: {reason}",
            hint="Use a checkpoint whose architecture ends in ForCausalLM, LMHeadModel or ForMaskedLM.",
        )
    return "causal"


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in the order of the classifier's outputs.

    Raises
    ------
    CheckpointError
        Where config.json names other classes than one for every output.

    Examples
    --------
    >>> label_names({"id2label": {"1": "dog", "0": "cat"}}), label_names({})
    (('cat', 'dog'), ('LABEL_0', 'LABEL_1'))
    """
    names: Mapping[Any, Any] = config.get("id2label") or {}
    if not names:
        return tuple(f"LABEL_{number}" for number in range(int(config.get("num_labels", 2))))
    try:
        by_number = {int(number): str(name) for number, name in names.items()}
    except (ValueError, TypeError, AttributeError):
        by_number = {}
    if sorted(by_number) != list(range(len(names))):
        raise CheckpointError(
            f"config.json: id2label names the classes {', '.join(map(str, names))}, and not 0 to {len(names) - 1}",
            hint="Write a name for every output of the classifier, counted from 0, and publish again.",
        )
    return tuple(by_number[number] for number in range(len(names)))


def find_activation(config: Mapping[str, Any]) -> Activation:
    """Return what makes a classifier's scores of its logits, as transformers' own pipeline has it.

    Several labels at once, or a single one, are scored each by itself (sigmoid), others against each other (softmax).
    A regression's outputs are its scores.

    Raises
    ------
    CheckpointError
        For CrossEncoders with another activation.

    Examples
    --------
    >>> find_activation({"num_labels": 2}), find_activation({"num_labels": 1})
    ('softmax', 'sigmoid')
    >>> find_activation({"problem_type": "regression"})
    'identity'
    """
    problem = config.get("problem_type")
    found: Activation = "softmax"
    if problem == "regression":
        found = "identity"
    elif problem == "multi_label_classification" or len(label_names(config)) == 1:
        found = "sigmoid"
    of_encoder = config.get("sentence_transformers")
    told = of_encoder.get("activation_fn") if isinstance(of_encoder, Mapping) else None
    _check_activation(told or config.get("sbert_ce_default_activation_function"), found, "config.json")
    return found


def _check_activation(told: Any, found: Activation, where: str) -> None:
    """Refuse a CrossEncoder whose scores are not those that this task writes."""
    wanted = found.capitalize()
    if told and str(told).rpartition(".")[2] != wanted:
        raise CheckpointError(
            f"{where}: the scores of this CrossEncoder are the {told} of its logits, and not their {wanted}",
            hint="Take that activation out for probabilities, or use the task forward, which writes the logits.",
        )


def _check_classifier(request: TaskRequest) -> None:
    if "ForAudio" in request.architecture or request.architecture.endswith("ForXVector"):
        raise refuse_sound(request.architecture)
    if not request.architecture.endswith(CLASSIFIER):
        raise CheckpointError(
            f"{request.architecture} cannot classify: it has no trained sequence classifier",
            hint=f"Use a checkpoint whose architecture ends in {CLASSIFIER}, or the task embed.",
        )
    if request.config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{request.architecture} cannot classify: encoder-decoder classifiers are not supported",
            hint="Use an encoder's or a decoder's classifier, or the task embed.",
        )
    settings = read_json(request, "config_sentence_transformers.json") or {}
    _check_activation(
        settings.get("activation_fn"), find_activation(request.config), "config_sentence_transformers.json"
    )


def refuse_sound(architecture: str) -> CheckpointError:
    """Return the error for a model of sound, which `embed` and `classify` do not take.

    Examples
    --------
    >>> print(refuse_sound("WhisperModel").message)
    WhisperModel takes sound, and the tasks embed and classify take texts and images
    """
    return CheckpointError(
        f"{architecture} takes sound, and the tasks embed and classify take texts and images",
        hint="Make arrays of one shape with the checkpoint's own feature extractor, and use the task forward on them.",
    )
