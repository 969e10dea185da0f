"""Tiny random models of many architectures: some that the plain decoder computes exactly, some that it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
}
ALTERNATING = {  # layers of two kinds of attention, both also in the upper third
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 16,
    "head_dim": 24,
}
PART_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def model(kind: str, *, config: str = "", like_trained: bool = True, **changes: Any) -> Any:
    """A frozen random model of transformers' `kind`, made from `SIZES`; norms and biases are random too.

    The configuration's class is `config`, where it has another name.
    """
    import transformers

    settings = getattr(transformers, config or f"{kind}Config")(**{**SIZES, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, f"{kind}ForCausalLM")(settings)
        for weight in made.parameters() if like_trained else ():
            if weight.dim() == 1:  # norms, of ones or of zeros by what they multiply with, and biases
                torch.nn.init.normal_(weight, weight.detach().mean().item(), 0.3)
    return made.eval().requires_grad_(False)


EXACT: dict[str, Callable[[], Any]] = {
    "llama": lambda: model("Llama"),
    "llama-tied": lambda: model("Llama", tie_word_embeddings=True),
    "llama-ungrouped": lambda: model("Llama", num_key_value_heads=4),
    "llama-one-kv-head": lambda: model("Llama", num_key_value_heads=1),
    "llama-wide-heads": lambda: model("Llama", head_dim=24),
    "llama-all-biases": lambda: model("Llama", attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: model("Llama", rope_parameters=LLAMA_3_ROPE),
    "linear-rope": lambda: model("Llama", rope_parameters=LINEAR_ROPE),
    "yarn-rope": lambda: model("Llama", rope_parameters=YARN_ROPE),
    "large-epsilon": lambda: model("Llama", rms_norm_eps=0.1),
    "qwen2": lambda: model("Qwen2"),
    "qwen2-tied": lambda: model("Qwen2", tie_word_embeddings=True),
    "qwen3": lambda: model("Qwen3", head_dim=24),
    "qwen3-tied": lambda: model("Qwen3", head_dim=16, tie_word_embeddings=True),
    "mistral": lambda: model("Mistral", sliding_window=None),
    "mistral-window": lambda: model("Mistral", sliding_window=16),
    "qwen2-window": lambda: model("Qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3-window": lambda: model("Qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "smollm3": lambda: model("SmolLM3", no_rope_layer_interval=2),
    "gemma": lambda: model("Gemma", head_dim=16),
    "gemma3": lambda: model(
        "Gemma3", config="Gemma3TextConfig", query_pre_attn_scalar=64, rope_parameters=TWO_ROPES, **ALTERNATING
    ),
    "olmo2": lambda: model("Olmo2"),
    "olmo3": lambda: model("Olmo3", rope_parameters=TWO_ROPES, **ALTERNATING),
    "ministral": lambda: model("Ministral", **ALTERNATING),
    "seed-oss": lambda: model("SeedOss", head_dim=16),
    "phi3": lambda: model("Phi3", sliding_window=16),
    "gemma2": lambda: model(
        "Gemma2",
        query_pre_attn_scalar=10,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
        **ALTERNATING,
    ),
}
FAMILIES = (  # of `EXACT`: every shape of a layer
    "llama",
    "qwen2",
    "qwen3",
    "mistral-window",
    "smollm3",
    "gemma3",
    "gemma2",
    "olmo2",
    "phi3",
)
REFUSED: dict[str, Callable[[], Any]] = {
    "gpt-neox": lambda: model("GPTNeoX"),
    "opt": lambda: model("OPT", ffn_dim=96, word_embed_proj_dim=64),
    "phi": lambda: model("Phi"),
    "granite": lambda: model("Granite", logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere": lambda: model("Cohere"),
    "llama-with-a-setting-of-mistral": lambda: model("Llama", sliding_window=48),
    "ministral3-scaled-in-long-texts": lambda: model("Ministral3"),
    "exaone4": lambda: model("Exaone4", layer_types=["sliding_attention", "full_attention"] * 2, num_hidden_layers=4),
    "helium": lambda: model("Helium", head_dim=16),
    "olmo-norms-without-weights": lambda: model("Olmo"),
    "phi3-rope-on-a-part": lambda: model("Phi3", rope_parameters=PART_ROPE),
    "phi3-longrope": lambda: model("Phi3", rope_parameters=LONG_ROPE),
    "dynamic-rope": lambda: model("Llama", rope_parameters=DYNAMIC_ROPE, max_position_embeddings=64),
    "gelu": lambda: model("Llama", hidden_act="gelu"),
    "relu": lambda: model("Llama", hidden_act="relu"),
    "gelu-with-small-weights": lambda: model("Llama", like_trained=False, hidden_act="gelu", initializer_range=0.005),
    "mixtral": lambda: model("Mixtral", num_local_experts=2, num_experts_per_tok=1, sliding_window=None),
    "qwen3-experts": lambda: model(
        "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1, head_dim=16
    ),
    "qwen3-experts-in-some-layers": lambda: model(
        "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2, head_dim=16
    ),
}
