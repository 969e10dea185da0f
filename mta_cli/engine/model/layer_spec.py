"""What distinguishes one family's decoder layers from another's, as data read from a model of transformers.

The decoder computes every layer in the same way; a description says what the layer is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

LENGTH_INDEPENDENT_ROPES = ("default", "linear", "llama3", "yarn")  # angles that do not depend on how long the text is
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # other formats are packed, or need a scale
NORMS = {"input_layernorm", "post_attention_layernorm"}
PROJECTIONS: Mapping[str, tuple[str, ...]] = {  # modules that read the same input, by their joint name
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer. `rotary`: whether queries and keys are rotated by their positions."""

    rotary: bool = True


@dataclass(frozen=True)
class DecoderSpec:
    """All layers of a decoder, from the first to the last."""

    layers: tuple[LayerSpec, ...]


def read_decoder_spec(model: Any) -> DecoderSpec | None:
    """The description of `model`'s decoder; None where a part of it is not known here."""
    config = model.config.get_text_config()
    decoder: Any = getattr(model, "model", None)
    if getattr(model, "base_model_prefix", "") != "model" or not hasattr(decoder, "rotary_emb"):
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    default = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    windows = set(getattr(config, "layer_types", None) or [default])
    if rope.get("rope_type", "default") not in LENGTH_INDEPENDENT_ROPES or windows != {"full_attention"}:
        return None
    if not _has_plain_weight(model.get_output_embeddings()) or not all(map(_is_known_layer, decoder.layers)):
        return None
    return DecoderSpec(
        tuple(LayerSpec(rotary=bool(getattr(layer.self_attn, "use_rope", True))) for layer in decoder.layers)
    )


def _has_plain_weight(module: Any) -> TypeGuard[nn.Linear]:
    """Whether `module` is a linear layer whose weight is its numbers, and no packed or scaled form of them."""
    return (
        isinstance(module, nn.Linear)
        and module.weight.dtype in PLAIN_DTYPES
        and module.weight.shape == (module.out_features, module.in_features)
    )


def _is_known_layer(layer: Any) -> bool:
    """Whether a layer has the projections and norms that the decoder reads, and no others."""
    modules = dict(layer.named_modules())
    linear = {path for path, module in modules.items() if isinstance(module, nn.Linear)}
    if linear != {path for paths in PROJECTIONS.values() for path in paths}:
        return False
    return (
        {name for name, _ in layer.named_children()} == {"self_attn", "mlp", *NORMS}
        and all(_has_plain_weight(modules[path]) for path in linear)
        and all(len({modules[path].bias is None for path in paths}) == 1 for paths in PROJECTIONS.values())
        and all(hasattr(modules[name], "variance_epsilon") for name in NORMS)
    )
