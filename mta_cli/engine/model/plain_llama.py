"""Llama's modules for decoding and scoring, built without transformers' modelling code, whose import takes seconds.

The modules have the names of transformers' `LlamaForCausalLM`, so that adapters and the decoder find them. The model
itself cannot be called: `LlamaDecoder` computes with its modules.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mta_cli.engine.model.checkpoint_files import read_config, weight_files
from mta_cli.errors import IntegrityFault

# The settings with which a base is loaded here: sizes, settings that change no answer, and settings with a fixed value.
# Any other setting or value could change the computation, so transformers loads such a base instead.
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps"),
)
_WITHOUT_EFFECT = {
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_range"),
    *("transformers_version", "use_cache", "is_llama_config", "rope_interleaved", "_name_or_path"),
}
_FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "rope_scaling": None,
}


def read_plain_config(path: Path) -> dict[str, Any] | None:
    """The configuration of the base in folder `path` if it is a Llama with default settings; otherwise None."""
    config = read_config(path)
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    known = {*_SIZES, *_WITHOUT_EFFECT, *_FIXED, "head_dim", "rope_parameters", "rope_theta", "tie_word_embeddings"}
    plain = (
        set(config) <= known
        and all(name in config for name in _SIZES)
        and config.get("model_type") == "llama"
        and all(config.get(name, value) == value for name, value in _FIXED.items())
        and set(rope) == {"rope_type", "rope_theta"}
        and rope["rope_type"] == "default"
        and not config.get("rope_interleaved")
    )
    return {**config, "rope_parameters": rope} if plain else None


class _Linear(nn.Linear):
    """A linear layer whose weights come from a file. PyTorch's random initialisation would import much of PyTorch."""

    def reset_parameters(self) -> None:
        """Do nothing: the weights are read from a file later."""


class _Embedding(nn.Embedding):
    """An embedding whose weights come from a file."""

    def reset_parameters(self) -> None:
        """Do nothing: the weights are read from a file later."""


class _Norm(nn.Module):
    """A root mean square norm (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` → `[…, width]`, computed in float32."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(x.dtype)


class _Rotary(nn.Module):
    """The cosines and sines of rotary positions (arXiv 2104.09864)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, time, head width] at `positions` [1, time], in the number format of `like`."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.int64, device=like.device).float() / self.head_dim
        angles = positions[..., None].float() * (1.0 / self.theta**steps)  # [1, time, head width / 2]
        both = torch.cat((angles, angles), -1)
        return both.cos().to(like.dtype), both.sin().to(like.dtype)


class _Attention(nn.Module):
    sliding_window = None

    def __init__(self, config: SimpleNamespace, head_dim: int) -> None:
        super().__init__()
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.scaling = head_dim, head_dim**-0.5
        self.q_proj = _Linear(width, heads * head_dim, bias=False)
        self.k_proj = _Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = _Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = _Linear(heads * head_dim, width, bias=False)


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = _Linear(width, inner, bias=False)
        self.up_proj = _Linear(width, inner, bias=False)
        self.down_proj = _Linear(inner, width, bias=False)


class _Layer(nn.Module):
    def __init__(self, config: SimpleNamespace, head_dim: int) -> None:
        super().__init__()
        self.self_attn = _Attention(config, head_dim)
        self.mlp = _Mlp(config.hidden_size, config.intermediate_size)
        self.input_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)


class _Backbone(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, head_dim) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = _Rotary(head_dim, float(config.rope_parameters["rope_theta"]))


class PlainLlama(nn.Module):
    """The modules of a Llama. `generation_config` has the end tokens, if the folder has that file."""

    base_model_prefix = "model"

    def __init__(self, config: dict[str, Any], generation: dict[str, Any]) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(**{"eos_token_id": None, **config})
        self.config.get_text_config = lambda: self.config
        self.generation_config = SimpleNamespace(**generation)
        self.model = _Backbone(self.config)
        self.lm_head = _Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.lm_head


def load_plain_llama(name: str, path: Path, config: dict[str, Any], dtype: torch.dtype) -> PlainLlama:
    """The model in folder `path`. Weights that the files store in `dtype` are memory-mapped; others are converted.

    Raises IntegrityFault if weights are missing or have another shape.
    """
    from safetensors.torch import load_file

    generation = path / "generation_config.json"
    with torch.device("meta"):
        model = PlainLlama(config, json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {})
    weights = {key: value for file in weight_files(path) for key, value in load_file(path / file).items()}
    if config.get("tie_word_embeddings"):
        model.lm_head.weight = model.model.embed_tokens.weight
    wanted = dict(model.named_parameters())  # a tied head is not among them
    wrong = sorted(key for key, one in wanted.items() if key not in weights or weights[key].shape != one.shape)
    if wrong:
        raise IntegrityFault(
            f"{name}: the weights are incomplete ({len(wrong)} missing or of another shape, first {wrong[0]})",
            hint="pull or copy the model again",
        )
    model.load_state_dict({key: weights[key].to(dtype) for key in wanted}, strict=False, assign=True)
    if config.get("tie_word_embeddings"):
        model.lm_head.weight = model.model.embed_tokens.weight
    return model
