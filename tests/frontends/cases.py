"""The configs whose twins are held to transformers: the bundled ones, the plain relatives, and variants of both."""

from __future__ import annotations

from typing import Any

from regraft.frontends.folder import builtin_names, open_model


def builtin(name: str, **changes: Any) -> dict[str, Any]:
    """Return a bundled config with some keys changed."""
    return {**open_model(f"builtin:{name}").config, **changes}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
AMPLIFIED = {
    "type": "yarn",
    "factor": 40,
    "mscale": 0.707,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
BUNDLED = [name for name in builtin_names() if not name.startswith("OpenELM")]  # transformers has no OpenELM
RELATIVES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 8},
    "mixtral": {"model_type": "mixtral", "sliding_window": 4096},
    "olmo2": {"model_type": "olmo2", "num_key_value_heads": 8},
    "smollm3": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 64},
    "glm4": {"model_type": "glm4"},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 8, "sliding_window": 2047, "partial_rotary_factor": 0.75},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "logits_scaling": 0.5,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.2,
    },
    "gemma2": {"model_type": "gemma2"},
    "gemma3": {"model_type": "gemma3_text"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama, as many key/value heads as query heads, biases, linear rope": {
        "model_type": "llama",
        "num_key_value_heads": 32,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama, one key/value head, yarn": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rope_parameters": YARN,
    },
    "mistral, window by default": {"model_type": "mistral"},
    "mistral, no window, gelu": {"model_type": "mistral", "sliding_window": None, "hidden_act": "gelu"},
    "qwen2, later layers slide": {**RELATIVES["qwen2"], "use_sliding_window": True, "max_window_layers": 20},
    "qwen3, later layers slide, biases": {
        "model_type": "qwen3",
        "num_key_value_heads": 8,
        "use_sliding_window": True,
        "sliding_window": 4096,
        "max_window_layers": 20,
        "attention_bias": True,
    },
    "qwen3 moe, dense layers between, a window": {
        "model_type": "qwen3_moe",
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "use_sliding_window": True,
    },
    "laguna, gates by channel, capped routing": builtin(
        "laguna-XS.2", gating="per-element", moe_router_logit_softcapping=0.5
    ),
    "phi3, longrope within its original context": {
        "model_type": "phi3",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "longrope",
            "factor": 32.0,
            "short_factor": [1 + 0.05 * i for i in range(48)],
            "long_factor": [1 + 1.3 * i for i in range(48)],
        },
    },
    "gemma3, the older keys": {
        "model_type": "gemma3_text",
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "deepseek v2, query latent, best groups": builtin(
        "DeepSeek-V2-Lite", q_lora_rank=1536, topk_method="group_limited_greedy", n_group=8, topk_group=3
    ),
    "deepseek v3, no query latent, plain rope, halves": builtin(
        "DeepSeek-V3", q_lora_rank=None, rope_scaling=None, rope_interleave=False
    ),
    "deepseek v3, biases, another amplitude, weights as they are": builtin(
        "DeepSeek-V3", attention_bias=True, rope_scaling=AMPLIFIED, norm_topk_prob=False, rms_norm_eps=1e-5
    ),
    "zaya, windows, more taps, biases": builtin(
        "ZAYA1-8B",
        layer_types=["hybrid", "hybrid_sliding"] * 20,
        sliding_window=4096,
        cca_time0=3,
        cca_time1=4,
        attention_bias=True,
        num_key_value_heads=1,
    ),
}
CASES: dict[str, dict[str, Any]] = {**{name: builtin(name) for name in BUNDLED}, **RELATIVES, **VARIANTS}
