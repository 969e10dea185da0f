"""A decoder of the Llama family as plain tensor operations on the base's own weights, with personal parts for each row.

What transformers' modules compute, in fewer and larger operations: projections that share their input are joint, a
pass may begin at any layer with states computed before, keys and values may come from elsewhere, and every row of a
batch may carry its own LoRA factors. Knows no users, prompts or losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mta_cli.engine.model.activation_cache import ActivationCache

LENGTH_INDEPENDENT_ROPES = ("default", "linear", "llama3", "yarn")  # angles that do not depend on how long the text is
EAGER_ATTENTION_MAX_KEYS = (
    512  # up to so many keys, plain products beat the fused attention kernel on a CPU, most of all backwards
)
PACKED_MAX_ROWS = 64  # up to so many rows of input, oneDNN reads weights in its own order about 1.5 times faster
INT8_MAX_ROWS = 8  # up to so many rows, products with 8-bit weights are read at the memory's speed

Rope = tuple[Tensor, Tensor]
WeightFormat = Literal["weights", "packed", "int8"]  # what a projection reads where it may: see `Plain.pack`
FusedFactors = dict[tuple[int, str], tuple[Tensor, Tensor]]


class PastKeyValues(Protocol):
    """Where the keys and values of earlier positions come from."""

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take `k`, `v` [rows, kv heads, new, head width]; return all that the new positions may see, in order."""
        ...


@dataclass(frozen=True)
class BatchedLora:
    """Low-rank parts of the rows at hand: `pairs[layer, joint] = (A [blocks?, in, rank], B [blocks?, rank, out])`.

    The scale is inside B. Rows stand in blocks of equally many neighbours that share a part; without the first axis all
    rows do. `where` [rows, time, 1] is 1 at the positions where parts act; None is everywhere.
    """

    fused_factors: FusedFactors
    position_mask: Tensor | None = None

    def add_delta(self, key: tuple[int, str], x: Tensor, y: Tensor) -> Tensor:
        """`y` [rows, time, out] and what the part of `key` makes of `x` [rows, time, in]."""
        if key not in self.fused_factors:
            return y
        a, b = self.fused_factors[key]
        inner = x.reshape(len(a) if a.dim() == 3 else 1, -1, x.shape[-1]) @ a  # [blocks, rows · time, rank]
        if self.position_mask is not None:
            inner = inner * self.position_mask.view(*inner.shape[:2], 1)
        return y + (inner @ b).view_as(y)


class FusedLinear:
    """A frozen projection: one or several linear modules that read the same input, their weights in one tensor.

    The modules' own weights become views of it, so what is folded into them is seen here and costs no second copy.
    """

    def __init__(self, *modules: nn.Linear) -> None:
        self.modules = modules
        self.weight: Tensor = modules[0].weight.detach()
        self.bias: Tensor | None = modules[0].bias
        if len(modules) > 1:
            self.weight = torch.cat([module.weight.detach() for module in modules])  # [Σ out, in]
            views = torch.split(self.weight, [module.out_features for module in modules])
            for module, view in zip(modules, views, strict=True):
                module.weight = nn.Parameter(view, requires_grad=False)
            biases = [module.bias.detach() for module in modules if module.bias is not None]
            self.bias = torch.cat(biases) if biases else None
        self._packed: Tensor | None = None
        self._bytes: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, read: WeightFormat = "weights") -> Tensor:
        """`[…, in]` → `[…, Σ out]`. Few rows read another copy of the weight where there is one and they may."""
        if read != "weights" and not x.requires_grad:
            rows = x.numel() // x.shape[-1]
            if read == "int8" and self._bytes is not None and rows <= INT8_MAX_ROWS:
                few: Tensor = torch._weight_int8pack_mm(x.reshape(rows, -1), *self._bytes).view(*x.shape[:-1], -1)
                return few if self.bias is None else few + self.bias
            if self._packed is not None and rows <= PACKED_MAX_ROWS:
                packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
                return packed
        return F.linear(x, self.weight, self.bias)

    def pack_onednn(self) -> None:
        """Keep a copy of the weight in oneDNN's order for few rows of input, as it is now."""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)

    def quantize_int8(self) -> None:
        """Keep a copy of the weight in whole numbers from −127 to 127 times one scale for each output, as it is now."""
        if self._bytes is None:
            scale = (self.weight.abs().amax(1) / 127).clamp_min(1e-12)  # [Σ out], in the weight's own numbers
            whole = (self.weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
            self._bytes = (whole, scale)

    def drop_copies(self) -> None:
        """Drop those copies: the weight has changed, or is about to."""
        self._packed = self._bytes = None


class RMSNorm:
    """Root-mean-square normalisation (Zhang & Sennrich, arXiv 1910.07467) with the module's own weight."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight
        self.eps = float(module.variance_epsilon)
        self._nothing = torch.zeros((), dtype=self.weight.dtype, device=self.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """`[…, width]` → `[…, width]`."""
        width = x.shape[-1]
        if x.numel() > width or x.device.type != "cpu" or x.requires_grad:
            return F.rms_norm(x, (width,), self.weight, self.eps)
        # One state alone on a CPU: two operations instead of eight, the number between them in Python.
        length = float(torch.linalg.vector_norm(x, dtype=torch.float32))
        scale = math.sqrt(width) / math.hypot(length, math.sqrt(width * self.eps))
        return torch.addcmul(self._nothing, x, self.weight, value=scale)


class DecoderLayer:
    """One decoder layer."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.norm_in, self.norm_mid = RMSNorm(module.input_layernorm), RMSNorm(module.post_attention_layernorm)
        self.projections = {
            "qkv": FusedLinear(attention.q_proj, attention.k_proj, attention.v_proj),
            "out": FusedLinear(attention.o_proj),
            "gate_up": FusedLinear(mlp.gate_proj, mlp.up_proj),
            "down": FusedLinear(mlp.down_proj),
        }
        self.norm_q, self.norm_k = (
            RMSNorm(getattr(attention, name)) if getattr(attention, name, None) is not None else None
            for name in ("q_norm", "k_norm")
        )


class LlamaDecoder:
    """The decoder. `plain_decoder` makes it where it is exact."""

    def __init__(self, model: Any) -> None:
        decoder, config = model.model, model.config.get_text_config()
        self.embedding, self.norm = decoder.embed_tokens, RMSNorm(decoder.norm)
        self.head = FusedLinear(model.get_output_embeddings())
        self.layers = [DecoderLayer(layer) for layer in decoder.layers]
        first = decoder.layers[0].self_attn
        self.head_dim, self.scaling = int(first.head_dim), float(first.scaling)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.activation_cache = ActivationCache()
        self._rotary = decoder.rotary_emb
        self._table: Rope | None = None

    @property
    def width(self) -> int:
        """How many numbers a state has."""
        return self.head.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """In what numbers the states are."""
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return self.head.weight.device

    def all_projections(self) -> list[FusedLinear]:
        """Every projection, the head's last."""
        return [*(joint for layer in self.layers for joint in layer.projections.values()), self.head]

    def pack_weights(self, int8: bool = False) -> None:
        """Copy the weights as they are now, for passes of few tokens on a CPU that read copies.

        `int8` rounds the copy to 8 bits, for passes of very few tokens; it needs `can_round`.
        """
        if int8:
            for joint in self.all_projections():
                joint.quantize_int8()
        elif self.dtype == torch.bfloat16 and self.device.type == "cpu" and _packs_bfloat16():
            for joint in self.all_projections():
                joint.pack_onednn()

    @property
    def supports_int8(self) -> bool:
        """Whether products with 8-bit weights can be had here, and are faster."""
        return self.device.type == "cpu" and self.dtype == torch.bfloat16

    def invalidate_caches(self) -> None:
        """Drop all that was made from the weights: they have changed, or are about to."""
        for joint in self.all_projections():
            joint.drop_copies()
        self.activation_cache.clear()

    def embed(self, ids: Tensor) -> Tensor:
        """States before layer 0, [rows, time, width], of token `ids` [rows, time]."""
        result: Tensor = self.embedding(ids)
        return result

    def rope(self, positions: Tensor) -> Rope:
        """Cosines and sines at `positions` [rows, time], each [rows, time, 1, head width]; signs are in the sines."""
        length = int(positions.max()) + 1 if positions.numel() else 1
        if self._table is None or len(self._table[0]) < length:
            with torch.inference_mode(False), torch.no_grad():  # training may use the table after decoding made it
                steps = torch.arange(max(256, 1 << (length - 1).bit_length()), device=positions.device)
                cos, sin = self._rotary(self.norm.weight, steps[None])
                sin[..., : self.head_dim // 2].neg_()
                self._table = (cos[0].contiguous(), sin[0].contiguous())
        cos, sin = self._table
        return cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)

    def run_layers(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        *,
        first: int = 0,
        last: int | None = None,
        parts: Sequence[BatchedLora] = (),
        past: PastKeyValues | None = None,
        read: WeightFormat = "weights",
    ) -> Tensor:
        """States [rows, time, width] after layers `first` to `last` (exclusive; None: all) from those before `first`.

        `mask` is added to attention scores, [rows or 1, 1, 1, time, keys]; None hides nothing. Copies of the
        weights that `pack` made are faster to `read`, and round differently.
        """
        for i in range(first, len(self.layers) if last is None else last):
            layer = self.layers[i]
            x = x + self._attention(i, layer.norm_in(x), rope, mask, parts, past, read)
            gate, up = self._project(i, "gate_up", layer.norm_mid(x), parts, read).chunk(2, -1)
            x = x + self._project(i, "down", F.silu(gate) * up, parts, read)
        return x

    def logits(self, x: Tensor, shifts: Tensor | None = None, read: WeightFormat = "weights") -> Tensor:
        """Logits [n, vocabulary] of states [n, width] after the last layer; `shifts` are added to them once normal."""
        normal = self.norm(x)
        return self.head(normal if shifts is None else normal + shifts, read)

    def _project(self, i: int, name: str, x: Tensor, parts: Sequence[BatchedLora], read: WeightFormat) -> Tensor:
        y = self.layers[i].projections[name](x, read)
        for part in parts:
            y = part.add_delta((i, name), x, y)
        return y

    def _attention(
        self,
        i: int,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        parts: Sequence[BatchedLora],
        past: PastKeyValues | None,
        read: WeightFormat,
    ) -> Tensor:
        layer, (rows, time, _) = self.layers[i], x.shape
        joint = self._project(i, "qkv", x, parts, read).view(rows, time, -1, self.head_dim)
        turning, v = torch.split(joint, [self.heads + self.kv_heads, self.kv_heads], 2)
        if layer.norm_q is not None and layer.norm_k is not None:
            q, k = torch.split(turning, [self.heads, self.kv_heads], 2)
            turning = torch.cat([layer.norm_q(q), layer.norm_k(k)], 2)
        q, k = torch.split(_rotate(turning, rope), [self.heads, self.kv_heads], 2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # [rows, kv heads, time, head width]
        if past is not None:
            k, v = past.update_kv(i, k, v)
        return self._project(i, "out", self._attend(q, k, v, mask), parts, read)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Mixed values [rows, time, heads · head width] for queries [rows, time, heads, head width]."""
        rows, time, heads, width = q.shape
        groups, keys = heads // self.kv_heads, k.shape[2]
        if time == 1:  # the heads that share keys stand where the fused kernel has the queries of one head
            shared, hidden = q.view(rows, self.kv_heads, groups, width), mask.squeeze(2) if mask is not None else None
            mixed = F.scaled_dot_product_attention(shared, k, v, attn_mask=hidden, scale=self.scaling)
            return mixed.reshape(rows, 1, heads * width)
        if keys > EAGER_ATTENTION_MAX_KEYS or q.device.type != "cpu":
            hidden = mask.squeeze(2) if mask is not None else None
            mixed = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=hidden, scale=self.scaling, enable_gqa=groups > 1
            )
            return mixed.transpose(1, 2).reshape(rows, time, heads * width)
        q = (q * self.scaling).view(rows, time, self.kv_heads, groups, width).permute(0, 2, 3, 1, 4)
        scores = q.reshape(rows, self.kv_heads, groups * time, width) @ k.transpose(2, 3)
        if mask is not None:
            scores = (scores.view(rows, self.kv_heads, groups, time, keys) + mask).view_as(scores)
        mixed = (torch.softmax(scores, -1) @ v).view(rows, self.kv_heads, groups, time, width)
        return mixed.permute(0, 3, 1, 2, 4).reshape(rows, time, heads * width)


def _packs_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), sin)


def causal_mask(time: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to scores, [1, 1, 1, time, time]: −∞ where a key is later than the query."""
    mask = torch.full((time, time), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(1)[None, None, None]


def build_llama_decoder(model: Any) -> LlamaDecoder | None:
    """The plain decoder of `model` where it has the family's shape and gives the same logits; else None."""
    if not _is_llama_architecture(model):
        return None
    plain = LlamaDecoder(model)
    words = plain.embedding.weight.shape[0]  # the first ones are special, and too noisy in bfloat16 to compare
    ids = (torch.arange(1, 33, device=plain.device) * words // 33)[None]
    with torch.no_grad():
        theirs = model(input_ids=ids, use_cache=False).logits[0].float()
        states = plain.run_layers(
            plain.embed(ids),
            plain.rope(torch.arange(32, device=ids.device)[None]),
            causal_mask(32, plain.dtype, plain.device),
        )
        ours = plain.logits(states[0]).float()
    spread = (ours - theirs).abs().mean() / theirs.std().clamp_min(1e-6)
    return plain if float(spread) < (1e-4 if plain.dtype == torch.float32 else 0.1) else None


def _is_llama_architecture(model: Any) -> bool:
    config = model.config.get_text_config()
    decoder: Any = getattr(model, "model", None)
    if getattr(model, "base_model_prefix", "") != "model" or not hasattr(decoder, "rotary_emb"):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    every = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    windows = set(getattr(config, "layer_types", None) or [every])
    if rope.get("rope_type", "default") not in LENGTH_INDEPENDENT_ROPES or windows != {"full_attention"}:
        return False
    return all(_is_llama_layer(layer) for layer in decoder.layers)


def _is_llama_layer(layer: Any) -> bool:
    """Whether a decoder layer has exactly the parts that `Plain` computes with."""
    names = {name for name, _ in layer.named_children()}
    linear = [
        module
        for parent, wanted in (("self_attn", "q_proj k_proj v_proj o_proj"), ("mlp", "gate_proj up_proj down_proj"))
        for name in wanted.split()
        if isinstance(module := getattr(getattr(layer, parent, None), name, None), nn.Linear)
    ]
    same_bias = all(len({m.bias is None for m in group}) == 1 for group in (linear[:3], linear[4:6]))
    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    return (
        names == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and len(linear) == 7
        and same_bias
        and all(hasattr(norm, "variance_epsilon") for norm in norms)
    )
