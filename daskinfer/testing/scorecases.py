"""Further language models that `score` is tested on, late, each made of nothing but these sizes and `SMALL_DECODER`."""

from __future__ import annotations

from typing import Any

_WINDOW = {"sliding_window": 8}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_SEVERAL = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = _EXPERTS | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_EARLY = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 66, "rotary_dim": 4}
_HALF = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
}
_MIXED = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_SIZES: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {},
        (
            "ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM BioGptForCausalLM BitNetForCausalLM "
            "BloomForCausalLM CohereForCausalLM CwmForCausalLM DiffLlamaForCausalLM DogeForCausalLM Emu3ForCausalLM "
            "Ernie4_5ForCausalLM Exaone4ForCausalLM GemmaForCausalLM Glm4ForCausalLM GlmForCausalLM GPTNeoXForCausalLM "
            "GPTNeoXJapaneseForCausalLM GraniteForCausalLM HeliumForCausalLM HunYuanDenseV1ForCausalLM "
            "HyperCLOVAXForCausalLM Jais2ForCausalLM MptForCausalLM NanoChatForCausalLM NemotronForCausalLM "
            "Olmo2ForCausalLM OlmoForCausalLM PersimmonForCausalLM PhiForCausalLM Qwen2ForCausalLM SeedOssForCausalLM "
            "SmolLM3ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM XGLMForCausalLM"
        ),
    ),
    (
        _WINDOW,
        (
            "Cohere2ForCausalLM Lfm3ForCausalLM Ministral3ForCausalLM MinistralForCausalLM "
            "ModernBertDecoderForCausalLM Olmo3ForCausalLM VaultGemmaForCausalLM"
        ),
    ),
    (_WINDOW | {"query_pre_attn_scalar": 8}, "Gemma2ForCausalLM"),
    ({"block_size": 8, "num_local_experts": 2}, "MiniMaxForCausalLM"),
    (
        _SEVERAL,
        (
            "Cohere2MoeForCausalLM FlexOlmoForCausalLM GptOssForCausalLM GraniteMoeForCausalLM "
            "GraniteMoeSharedForCausalLM HunYuanMoEV1ForCausalLM JetMoeForCausalLM Llama4ForCausalLM "
            "MiniMaxM2ForCausalLM OlmoeForCausalLM PhimoeForCausalLM"
        ),
    ),
    (
        _EXPERTS,
        (
            "AfmoeForCausalLM Dots1ForCausalLM Ernie4_5_MoeForCausalLM Glm4MoeForCausalLM Qwen2MoeForCausalLM "
            "SolarOpenForCausalLM"
        ),
    ),
    (_LATENT, "DeepseekV2ForCausalLM DeepseekV3ForCausalLM Glm4MoeLiteForCausalLM LongcatFlashForCausalLM"),
    (_EARLY, "CodeGenForCausalLM GPTBigCodeForCausalLM GPTJForCausalLM OpenAIGPTLMHeadModel"),
    (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        "GPTNeoForCausalLM",
    ),
    (
        {"is_decoder": True},
        (
            "BertGenerationDecoder BertLMHeadModel ElectraForCausalLM MegatronBertForCausalLM RemBertForCausalLM "
            "RoFormerForCausalLM"
        ),
    ),
    (_HALF, "BartForCausalLM BlenderbotForCausalLM MarianForCausalLM MBartForCausalLM PegasusForCausalLM"),
    (_MIXED, "OlmoHybridForCausalLM Qwen3_5ForCausalLM"),
)
SCORE_MORE = {name: sizes for sizes, names in _SIZES for name in names.split()}
"""Class -> its sizes; the page of models names them below its table, in this order."""
