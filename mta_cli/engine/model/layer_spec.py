"""Describes a model's decoder layers as data, read from its transformers modules.

`LlamaDecoder` runs the same code for every layer; the description lists the parts that a layer has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# types of rotary embedding whose angles do not depend on the text's length
LENGTH_INDEPENDENT_ROPES = ("default", "linear", "llama3", "yarn")
# all their settings; a base with another setting is refused, because its effect might show only on texts longer than
# the one that is compared at loading
ROPE_SETTINGS = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "partial_rotary_factor",
}
# families whose `sliding_window` applies to all layers, although their layers do not mention it
ONE_WINDOW_FAMILIES = ("mistral", "phi3")
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # other formats are packed or scaled
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # by the name in a configuration
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
# modules that read the same input, by the name of the fused projection
PROJECTIONS: Sequence[Mapping[str, tuple[str, ...]]] = (
    {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    },
    {  # Phi 3's, joined in the checkpoint
        "qkv": ("self_attn.qkv_proj",),
        "out": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_up_proj",),
        "down": ("mlp.down_proj",),
    },
)
# factors of Granite and Cohere, which the decoder does not apply
SCALES = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale")
ONE_ROPE = "all"  # the name of the rotary table if all layers share one


@dataclass(frozen=True)
class NormPlaces:
    """The names of a layer's norms by their places; None for a place without a norm."""

    before_attention: str | None = None
    after_attention: str | None = None
    before_mlp: str | None = None
    after_mlp: str | None = None

    @property
    def names(self) -> set[str]:
        """The names of the existing norms."""
        return {name for name in astuple(self) if name is not None}


NORM_PLACES = (
    NormPlaces(before_attention="input_layernorm", before_mlp="post_attention_layernorm"),  # Llama's
    NormPlaces(  # Gemma 2's and later
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    NormPlaces(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm"),  # Olmo 2's
)


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer.

    `rope` is the name of the rotary table for queries and keys; None if they are not rotated. A token attends to the
    last `window` positions, including its own; None means all.
    """

    norms: NormPlaces
    projections: Mapping[str, tuple[str, ...]]
    rope: str | None = ONE_ROPE
    window: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """All layers of a decoder in order, and the activation function of their gates.

    With a cap, attention scores or logits are soft-capped: `cap · tanh(x / cap)`.
    """

    layers: tuple[LayerSpec, ...]
    activation: Callable[[Tensor], Tensor]
    score_cap: float | None = None
    logit_cap: float | None = None


def read_decoder_spec(model: Any) -> DecoderSpec | None:
    """The description of `model`'s decoder; None if it has an unknown part."""
    config = model.config.get_text_config()
    decoder: Any = getattr(model, "model", None)
    if getattr(model, "base_model_prefix", "") != "model":
        return None
    if not all(hasattr(decoder, part) for part in ("layers", "rotary_emb")):
        return None
    activation = ACTIVATIONS.get(str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)))
    caps = [getattr(config, name, None) for name in ("attn_logit_softcapping", "final_logit_softcapping")]
    scaled = any((getattr(config, name, None) or 1.0) != 1.0 for name in SCALES)
    if activation is None or scaled or not has_plain_weight(model.get_output_embeddings()):
        return None
    default = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [default] * len(decoder.layers)
    layers = [_read_layer(layer, config, kind) for layer, kind in zip(decoder.layers, kinds, strict=True)]
    known = tuple(layer for layer in layers if layer is not None)
    return DecoderSpec(known, activation, *caps) if len(known) == len(layers) else None


def _read_layer(layer: Any, config: Any, kind: str) -> LayerSpec | None:
    """The description of a layer whose attention is of `kind`."""
    modules = dict(layer.named_modules())
    # 1. the norms: all children except attention, MLP, and dropout, which is inactive here. Each norm must have a
    #    weight; the first Olmo's have none
    children = {name for name, child in layer.named_children() if not isinstance(child, nn.Dropout)}
    children -= {"self_attn", "mlp"}
    norms = next((places for places in NORM_PLACES if places.names == children), None)
    # 2. the projections: exactly these linear layers, with a bias in all modules of a group or in none
    linear = {path for path, module in modules.items() if isinstance(module, nn.Linear)}
    joined = next((one for one in PROJECTIONS if {path for paths in one.values() for path in paths} == linear), None)
    if norms is None or joined is None or not all(hasattr(modules[name], "weight") for name in norms.names):
        return None
    if any(len({modules[path].bias is None for path in paths}) > 1 for paths in joined.values()):
        return None
    # 3. rotary positions: a table for each kind of attention or one for all, over the whole head width
    ropes = getattr(config, "rope_parameters", None) or {}
    rope, name = (ropes[kind], kind) if isinstance(ropes.get(kind), Mapping) else (ropes, ONE_ROPE)
    part = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    known = rope.get("rope_type", "default") in LENGTH_INDEPENDENT_ROPES and set(rope) <= ROPE_SETTINGS
    if not known or part != 1.0 or kind not in ("full_attention", "sliding_attention"):
        return None
    # 4. the attention window; a setting that the layer does not read may be left over from another model
    window = config.sliding_window if kind == "sliding_attention" else None
    of_all = window if config.model_type in ONE_WINDOW_FAMILIES else None
    if window != getattr(layer.self_attn, "sliding_window", of_all):
        return None
    return LayerSpec(norms, joined, name if getattr(layer.self_attn, "use_rope", True) else None, window)


def has_plain_weight(module: Any) -> TypeGuard[nn.Linear]:
    """Whether `module` is a linear layer with plain weights, neither packed nor scaled."""
    return (
        isinstance(module, nn.Linear)
        and module.weight.dtype in PLAIN_DTYPES
        and module.weight.shape == (module.out_features, module.in_features)
    )
