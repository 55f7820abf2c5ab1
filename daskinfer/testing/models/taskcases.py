"""Checkpoint classes that the tests run each task on; the table of models claims these and no others."""

from __future__ import annotations

from typing import Any

import transformers

from daskinfer.testing.models.zoo import ZOO, ZooCase

EMBED_TEXTS = (
    "BertModel",
    "BertForMaskedLM",
    "RobertaModel",
    "DistilBertModel",
    "MPNetModel",
    "ModernBertModel",
    "DebertaV2Model",
    "ElectraModel",
    "AlbertModel",
    "T5EncoderModel",
    "T5ForConditionalGeneration",
    "BartModel",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
)
CLASSIFY_TEXTS = (
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
    "DistilBertForSequenceClassification",
    "ModernBertForSequenceClassification",
    "LlamaForSequenceClassification",
    "GPT2ForSequenceClassification",
)
SCORE_CAUSAL = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
    "OPTForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "MambaForCausalLM",
)
SCORE_MASKED = (
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "DistilBertForMaskedLM",
    "MPNetForMaskedLM",
    "ModernBertForMaskedLM",
)
# With the name of the case of the zoo whose configuration they take.
EMBED_IMAGES = (
    ("vit", "ViTModel"),
    ("swin", "SwinModel"),
    ("dinov2", "Dinov2Model"),
    ("clip", "CLIPModel"),
    ("convnext", "ConvNextForImageClassification"),
    ("resnet", "ResNetForImageClassification"),
    ("dinov3", "DINOv3ViTModel"),
)
CLASSIFY_IMAGES = (
    ("vit", "ViTForImageClassification"),
    ("swin", "SwinForImageClassification"),
    ("convnext", "ConvNextForImageClassification"),
    ("resnet", "ResNetForImageClassification"),
    ("dinov2", "Dinov2ForImageClassification"),
    ("segformer", "SegformerForImageClassification"),
    ("clip", "CLIPForImageClassification"),
)
# Compared with plain transformers row by row, by the name of the case of the zoo.
EMBED_ALONE = (
    ("squeezebert", "SqueezeBertModel"),
    ("layoutlm", "LayoutLMModel"),
    ("ibert", "IBertModel"),
    ("longformer", "LongformerModel"),
    ("led", "LEDModel"),
    ("longt5", "LongT5EncoderModel"),
)
SCORE_ALONE = (
    ("ctrl", "CTRLLMHeadModel"),
    ("gemma3n", "Gemma3nForCausalLM"),
    ("mamba2", "Mamba2ForCausalLM"),
    ("falcon-mamba", "FalconMambaForCausalLM"),
    ("jamba", "JambaForCausalLM"),
    ("zamba2", "Zamba2ForCausalLM"),
    ("bamba", "BambaForCausalLM"),
    ("falcon-h1", "FalconH1ForCausalLM"),
    ("recurrentgemma", "RecurrentGemmaForCausalLM"),
    ("granite-hybrid", "GraniteMoeHybridForCausalLM"),
    ("nemotron-h", "NemotronHForCausalLM"),
    ("lfm2", "Lfm2ForCausalLM"),
    ("qwen3-next", "Qwen3NextForCausalLM"),
)
_TASKS = {
    "embed": (*EMBED_TEXTS, *(name for _, name in (*EMBED_IMAGES, *EMBED_ALONE))),
    "classify": (*CLASSIFY_TEXTS, *(name for _, name in CLASSIFY_IMAGES)),
    "score": (*SCORE_CAUSAL, *SCORE_MASKED, *(name for _, name in SCORE_ALONE)),
}


def tested_tasks(case: ZooCase) -> dict[str, tuple[str, ...]]:
    """Return the tasks that tests run on a family's checkpoints besides `forward`, and on which classes.

    Where two families have one type of configuration, such as T5 and its encoder alone, a class that is the
    architecture of one counts for that one only.

    Examples
    --------
    >>> tested_tasks(next(case for case in ZOO if case.config is None))
    {}
    """
    if case.config is None:
        return {}
    others = {one.architecture for one in ZOO} - {case.architecture}
    found = {
        task: tuple(name for name in names if name not in others and _model_type(name) == case.config["model_type"])
        for task, names in _TASKS.items()
    }
    return {task: names for task, names in found.items() if names}


def _model_type(architecture: str) -> str:
    model_class: Any = getattr(transformers, architecture)
    return str(model_class.config_class.model_type)
