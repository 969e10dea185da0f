"""A decoder of Llama and its relatives as tensor operations on the base's own weights, with LoRA factors for each row.

It computes what transformers' modules compute, in fewer and larger operations: projections that read the same input are
fused, and a pass may begin at any layer, with states and with keys and values computed before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mta_cli.engine.model.activation_cache import ActivationCache
from mta_cli.engine.model.layer_spec import ONE_ROPE, DecoderSpec, LayerSpec, has_plain_weight, read_decoder_spec

EAGER_ATTENTION_MAX_KEYS = 512  # up to so many keys, matrix products beat the fused attention kernel on a CPU
PACKED_MAX_ROWS = 64  # up to so many rows of input, oneDNN reads weights in its own order about 1.5 times faster
HALF_CAPABILITIES = ("AVX2", "AVX512")  # CPUs on which PyTorch reads float16 weights at the memory's speed, for one row
ONEDNN_OPS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")  # private: may be absent

Rope = tuple[Tensor, Tensor]
Ropes = Mapping[str, Rope]  # by the name of the table; see `LayerSpec`
Masks = Tensor | None | Mapping[int | None, Tensor | None]  # by window where layers have windows
FusedFactors = dict[tuple[int, str], tuple[Tensor, Tensor]]


class PastKeyValues(Protocol):
    """Where the keys and values of earlier positions come from."""

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's `k`, `v` [rows, kv heads, new, head width]; return all keys and values so far, in order."""
        ...


@dataclass(frozen=True)
class BatchedLora:
    """The LoRA factors of a batch's rows: `A [blocks, in, rank]` and `B [blocks, rank, out]` by layer and projection.

    The scale is inside B. Each block is equally many neighbouring rows that share factors; without the first axis all
    rows do. `position_mask` [rows, time, 1] is 1 where the factors act; None is everywhere.
    """

    fused_factors: FusedFactors
    position_mask: Tensor | None = None

    def add_delta(self, key: tuple[int, str], x: Tensor, y: Tensor) -> Tensor:
        """`y + B A x` for `x` [rows, time, in] and `y` [rows, time, out], with the factors of `key`."""
        if key not in self.fused_factors:
            return y
        a, b = self.fused_factors[key]
        inner = x.reshape(len(a) if a.dim() == 3 else 1, -1, x.shape[-1]) @ a  # [blocks, rows · time, rank]
        if self.position_mask is not None:
            inner = inner * self.position_mask.view(*inner.shape[:2], 1)
        return y + (inner @ b).view_as(y)


class FusedLinear:
    """One or several frozen linear modules that read the same input, with their weights in one tensor.

    The modules' own weights become views of it: what is folded into them is seen here, without a second copy.
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
        self._half: Tensor | None = None  # [Σ out, in] float16

    def __call__(self, x: Tensor, read_copies: bool = False) -> Tensor:
        """`[…, in]` → `[…, Σ out]`. With `read_copies`, few rows read a copy of the weight, where there is one."""
        if read_copies and not x.requires_grad:
            rows = x.numel() // x.shape[-1]
            if self._half is not None and rows == 1:
                return F.linear(x.half(), self._half).to(x.dtype)
            if self._packed is not None and rows <= PACKED_MAX_ROWS:
                packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
                return packed
        return F.linear(x, self.weight, self.bias)

    def pack_onednn(self) -> None:
        """Keep a copy of the weight as it is now, in oneDNN's own order."""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)

    def copy_as_half(self) -> None:
        """Keep a copy of the weight as it is now in float16, where there is no bias.

        A bfloat16 of an absolute value from 2⁻¹⁴ to 65,280 is the same number in float16; smaller ones lose bits.
        """
        if self._half is None and self.bias is None:
            self._half = self.weight.half()

    def drop_copies(self) -> None:
        """Drop all copies: the weight has changed, or is about to."""
        self._packed = self._half = None

    @property
    def has_half(self) -> bool:
        """Whether there is a copy in float16."""
        return self._half is not None

    def drop_half(self) -> None:
        """Drop the copy in float16."""
        self._half = None


class SeparateLinears:
    """Linear modules that read the same input, each computed by itself because a weight is packed, as NF4 is.

    What hooks add to a module is part of its output here.
    """

    def __init__(self, *modules: nn.Linear) -> None:
        self.modules = modules

    def __call__(self, x: Tensor, read_copies: bool = False) -> Tensor:
        """`[…, in]` → `[…, Σ out]`. There are no copies of the weights, whatever `read_copies` says."""
        outputs = [module(x) for module in self.modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _join(*modules: nn.Linear) -> FusedLinear | SeparateLinears:
    plain = all(has_plain_weight(module) for module in modules)
    return FusedLinear(*modules) if plain else SeparateLinears(*modules)


class RMSNorm:
    """Root-mean-square normalisation (Zhang & Sennrich, arXiv 1910.07467) with the module's own weight.

    Where the module multiplies by 1 + w, the sum is kept here, in float32, as the module computes with it.
    """

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight
        self.eps = float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
        if _multiplies_by_one_plus_weight(module):
            self.weight = 1.0 + module.weight.detach().float()
        self._nothing = torch.zeros((), dtype=self.weight.dtype, device=self.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """`[…, width]` → `[…, width]`."""
        if x.dtype != self.weight.dtype:
            return self(x.to(self.weight.dtype)).to(x.dtype)
        width = x.shape[-1]
        if x.numel() > width or x.device.type != "cpu" or x.requires_grad:
            return F.rms_norm(x, (width,), self.weight, self.eps)
        # One state alone on a CPU takes two operations instead of eight, with the scale computed in Python.
        length = float(torch.linalg.vector_norm(x, dtype=torch.float32))
        scale = math.sqrt(width) / math.hypot(length, math.sqrt(width * self.eps))
        return torch.addcmul(self._nothing, x, self.weight, value=scale)


def _multiplies_by_one_plus_weight(module: Any) -> bool:
    weight = module.weight.detach()
    with torch.no_grad():
        found = module(torch.ones_like(weight)).float()  # ones have the length that norms give: the factor is left
    return bool((found - 1.0 - weight.float()).abs().max() < (found - weight.float()).abs().max())


def _no_norm(x: Tensor) -> Tensor:
    return x


class DecoderLayer:
    """One decoder layer, as `spec` describes it."""

    def __init__(self, module: Any, spec: LayerSpec) -> None:
        self.spec = spec
        self.norm_in, self.norm_attention, self.norm_mid, self.norm_mlp = (
            RMSNorm(getattr(module, name)) if name is not None else _no_norm for name in astuple(spec.norms)
        )
        self.projections = {name: _join(*map(module.get_submodule, paths)) for name, paths in spec.projections.items()}
        attention = module.self_attn
        self.norm_q, self.norm_k = (
            _head_norm(getattr(attention, name, None), attention.head_dim) for name in ("q_norm", "k_norm")
        )


def _head_norm(module: Any, head_dim: int) -> Callable[[Tensor], Tensor] | None:
    """A norm of `[rows, time, heads, head width]`: of each head by itself, or of all together."""
    if module is None:
        return None
    norm = RMSNorm(module)
    return norm if norm.weight.numel() == head_dim else lambda x: norm(x.flatten(2)).view_as(x)


@dataclass(frozen=True)
class _LayerInputs:
    """What all layers of a pass read beside their states; see `LlamaDecoder.run_layers`. `masks` are by window."""

    rope: Ropes
    masks: Mapping[int | None, Tensor | None]
    loras: Sequence[BatchedLora]
    past: PastKeyValues | None
    read_copies: bool


class LlamaDecoder:
    """The decoder of a causal language model; `build_llama_decoder` makes it where it computes the same logits."""

    def __init__(self, model: Any, spec: DecoderSpec) -> None:
        decoder, config = model.model, model.config.get_text_config()
        self.embedding, self.norm = decoder.embed_tokens, RMSNorm(decoder.norm)
        self.head = FusedLinear(model.get_output_embeddings())
        self.layers = [DecoderLayer(layer, one) for layer, one in zip(decoder.layers, spec.layers, strict=True)]
        first = decoder.layers[0].self_attn
        self.head_dim, self.scaling = int(first.head_dim), float(first.scaling)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.activation_cache = ActivationCache()
        self._recomputes_layers = False
        self._half_overflows = False  # whether a state was too large for float16
        self.activation: Callable[[Tensor], Tensor] = spec.activation
        self.score_cap, self.logit_cap = spec.score_cap, spec.logit_cap
        self.windows = sorted({one.window for one in spec.layers if one.window is not None})
        self._rotary = decoder.rotary_emb
        nothing = torch.zeros(0)
        self._tables: dict[str, Rope] = {one.rope: (nothing, nothing) for one in spec.layers if one.rope is not None}
        self._table_length = 0  # positions that each table has

    @property
    def width(self) -> int:
        """The width of a state."""
        return self.head.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of weights and states."""
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of weights and states."""
        return self.head.weight.device

    def all_projections(self) -> list[FusedLinear]:
        """Every projection whose weights are plain, the head's last."""
        found = (one for layer in self.layers for one in layer.projections.values() if isinstance(one, FusedLinear))
        return [*found, self.head]

    def pack_weights(self, *, one_row: bool = True, many_rows: bool = True) -> None:
        """Copy bfloat16 weights as they are now, for decoding steps of few rows on a CPU.

        Steps of `one_row` read a copy in float16, those of `many_rows` one in oneDNN's order.
        """
        if self.dtype != torch.bfloat16 or self.device.type != "cpu":
            return
        for projection in self.all_projections():
            if one_row and not self._half_overflows and torch.backends.cpu.get_cpu_capability() in HALF_CAPABILITIES:
                projection.copy_as_half()
            if many_rows and _onednn_packs_bfloat16():
                projection.pack_onednn()

    def invalidate_caches(self) -> None:
        """Drop all that was computed from the weights: they have changed, or are about to."""
        for projection in self.all_projections():
            projection.drop_copies()
        self.activation_cache.clear()

    def embed(self, ids: Tensor) -> Tensor:
        """States before layer 0, [rows, time, width], of token `ids` [rows, time]."""
        result: Tensor = self.embedding(ids)
        return result

    def rope(self, positions: Tensor) -> Ropes:
        """Cosines and sines at `positions` [rows, time], each [rows, time, 1, head width]; signs are in the sines."""
        length = int(positions.max()) + 1 if positions.numel() else 1
        if length > self._table_length:
            self._table_length = max(256, 1 << (length - 1).bit_length())
            with torch.inference_mode(False), torch.no_grad():  # training may use the table after decoding made it
                steps = torch.arange(self._table_length, device=positions.device)
                self._tables = {name: self._rope_table(name, steps) for name in self._tables}
        return {
            name: (cos[positions].unsqueeze(2), sin[positions].unsqueeze(2))
            for name, (cos, sin) in self._tables.items()
        }

    def _rope_table(self, name: str, steps: Tensor) -> Rope:
        cos, sin = self._rotary(self.head.weight, steps[None], *(() if name == ONE_ROPE else (name,)))
        cos, sin = cos[0].to(self.dtype, copy=True), sin[0].to(self.dtype, copy=True)
        sin[..., : self.head_dim // 2].neg_()
        return cos, sin

    def mask_windows(self, mask: Tensor | None, positions: Tensor, key_positions: Tensor) -> Masks:
        """`mask` for each window that layers of this decoder have; `mask` itself where none has one.

        Queries are at `positions` [rows or 1, time] and keys at `key_positions` [rows or 1, keys]. A key that `mask`
        hides may have any position.
        """
        if not self.windows:
            return mask
        masks: dict[int | None, Tensor | None] = {None: mask}
        distance = positions[:, :, None] - key_positions[:, None]  # [rows, time, keys]
        for window in self.windows:
            is_far = distance >= window
            masks[window] = mask
            if bool(is_far.any()):
                far = torch.zeros(is_far.shape, dtype=self.dtype, device=self.device)
                far = far.masked_fill_(is_far, float("-inf"))[:, None, None]  # [rows, 1, 1, time, keys]
                masks[window] = far if mask is None else mask + far
        return masks

    def run_layers(
        self,
        x: Tensor,
        rope: Ropes,
        mask: Masks,
        *,
        first: int = 0,
        last: int | None = None,
        loras: Sequence[BatchedLora] = (),
        past: PastKeyValues | None = None,
        read_copies: bool = False,
    ) -> Tensor:
        """States [rows, time, width] after layers `first` to `last` (exclusive; None: all), from the states `x` before.

        `mask` [rows or 1, 1, 1, time, keys] is added to attention scores; None hides nothing. Where the decoder has
        `windows`, it is what `mask_windows` gives. `loras` act on their own rows. `past` holds the keys and values of
        earlier positions and takes the new ones. With `read_copies`, few rows read what `pack_weights` made; it rounds
        differently.

        Within `recomputing_layers`, `past` gets a layer's keys and values twice where gradients are needed.
        """
        masks: Mapping[int | None, Tensor | None] = mask if isinstance(mask, Mapping) else {None: mask}
        layers = range(first, len(self.layers) if last is None else last)
        inputs = _LayerInputs(rope, masks, loras, past, read_copies)
        found = self._run_layers(x, layers, inputs)
        one_row = read_copies and x.numel() == x.shape[-1]
        if one_row and self.head.has_half and not bool(torch.isfinite(found).all()):
            # A number was too large for float16: this base goes on without that copy, from this step on.
            self._half_overflows = True
            for projection in self.all_projections():
                projection.drop_half()
            found = self._run_layers(x, layers, inputs)
        return found

    @contextmanager
    def recomputing_layers(self, recomputes: bool = True) -> Iterator[None]:
        """Until exit, keep only the states before each layer for the backward pass, which computes the layer again.

        This is gradient checkpointing (Chen et al., arXiv 1604.06174): less memory, a third more time, and the same
        gradients. Nothing changes where gradients are not needed, or where `recomputes` is false.
        """
        before, self._recomputes_layers = self._recomputes_layers, recomputes
        try:
            yield
        finally:
            self._recomputes_layers = before

    def _run_layers(self, x: Tensor, layers: range, inputs: _LayerInputs) -> Tensor:
        recomputes = self._recomputes_layers and torch.is_grad_enabled()
        for i in layers:
            if recomputes:
                x = checkpoint(self._run_layer, i, x, inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._run_layer(i, x, inputs)
        return x

    def _run_layer(self, i: int, x: Tensor, inputs: _LayerInputs) -> Tensor:
        layer = self.layers[i]
        # 1. attention, added to the residual stream  [rows, time, width]
        x = x + layer.norm_attention(self._attention(i, layer.norm_in(x), inputs))
        # 2. gated MLP: activation(gate) · up  [rows, time, inner], back to  [rows, time, width]
        gate, up = self._project(i, "gate_up", layer.norm_mid(x), inputs).chunk(2, -1)
        return x + layer.norm_mlp(self._project(i, "down", self.activation(gate) * up, inputs))

    def logits(self, x: Tensor, read_copies: bool = False) -> Tensor:
        """Logits [n, vocabulary] of states [n, width] after the last layer."""
        logits = self.head(self.norm(x), read_copies)
        return logits if self.logit_cap is None else soft_cap(logits, self.logit_cap)

    def _project(self, i: int, name: str, x: Tensor, inputs: _LayerInputs) -> Tensor:
        y = self.layers[i].projections[name](x, inputs.read_copies)
        for lora in inputs.loras:
            y = lora.add_delta((i, name), x, y)
        return y

    def _attention(self, i: int, x: Tensor, inputs: _LayerInputs) -> Tensor:
        layer, (rows, time, _) = self.layers[i], x.shape
        # 1. queries, keys and values in one product  [rows, time, heads + 2 · kv heads, head width]
        qkv = self._project(i, "qkv", x, inputs).view(rows, time, -1, self.head_dim)
        qk, v = torch.split(qkv, [self.heads + self.kv_heads, self.kv_heads], 2)
        if layer.norm_q is not None and layer.norm_k is not None:
            q, k = torch.split(qk, [self.heads, self.kv_heads], 2)
            qk = torch.cat([layer.norm_q(q), layer.norm_k(k)], 2)
        # 2. rotary positions, on queries and keys together
        if layer.spec.rope is not None:
            qk = _rotate(qk, inputs.rope[layer.spec.rope])
        q, k = torch.split(qk, [self.heads, self.kv_heads], 2)
        # 3. keys and values behind those of earlier positions  [rows, kv heads, keys, head width]
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if inputs.past is not None:
            k, v = inputs.past.update_kv(i, k, v)
        # 4. attention, and the output projection  [rows, time, width]
        return self._project(i, "out", self._attend(q, k, v, inputs.masks[layer.spec.window]), inputs)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention output [rows, time, heads · head width] for queries `q` [rows, time, heads, head width].

        `k` and `v` are [rows, kv heads, keys, head width]; `groups` query heads share each of them.
        """
        rows, time, heads, width = q.shape
        groups, keys = heads // self.kv_heads, k.shape[2]
        # One new position: the query heads of a group stand where the fused kernel has the positions of one head.
        if time == 1 and self.score_cap is None:
            grouped, hidden = q.view(rows, self.kv_heads, groups, width), mask.squeeze(2) if mask is not None else None
            output = F.scaled_dot_product_attention(grouped, k, v, attn_mask=hidden, scale=self.scaling)
            return output.reshape(rows, 1, heads * width)
        # Many keys, or a GPU: the fused kernel.
        if self.score_cap is None and (keys > EAGER_ATTENTION_MAX_KEYS or q.device.type != "cpu"):
            hidden = mask.squeeze(2) if mask is not None else None
            output = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=hidden, scale=self.scaling, enable_gqa=groups > 1
            )
            return output.transpose(1, 2).reshape(rows, time, heads * width)
        # Few keys on a CPU, or scores with a cap, which the kernel does not have: matrix products.
        # 1. queries by the key head that they share  [rows, kv heads, groups, time, head width]
        q = (q * self.scaling).view(rows, time, self.kv_heads, groups, width).permute(0, 2, 3, 1, 4)
        # 2. scores  [rows, kv heads, groups · time, keys]
        scores = q.reshape(rows, self.kv_heads, groups * time, width) @ k.transpose(2, 3)
        if self.score_cap is not None:
            scores = soft_cap(scores, self.score_cap)
        if mask is not None:
            scores = (scores.view(rows, self.kv_heads, groups, time, keys) + mask).view_as(scores)
        # 3. weighted values, heads side by side again  [rows, time, heads · head width]
        output = (torch.softmax(scores, -1) @ v).view(rows, self.kv_heads, groups, time, width)
        return output.permute(0, 3, 1, 2, 4).reshape(rows, time, heads * width)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """`x` between −cap and cap: nearly itself where it is small."""
    return cap * torch.tanh(x / cap)


def _onednn_packs_bfloat16() -> bool:
    """Whether this PyTorch and CPU have oneDNN's products with reordered weights; without them weights stay as is."""
    ops = torch.ops.mkldnn
    return all(hasattr(ops, name) for name in ONEDNN_OPS) and bool(ops._is_mkldnn_bf16_supported())


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), sin)


def causal_mask(time: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to scores, [1, 1, 1, time, time]: −∞ where a key is later than the query."""
    mask = torch.full((time, time), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(1)[None, None, None]


def build_llama_decoder(model: Any) -> LlamaDecoder | None:
    """The decoder of `model` where its layers are known and it gives the same logits; else None."""
    if (spec := read_decoder_spec(model)) is None:
        return None
    decoder = LlamaDecoder(model, spec)
    # 32 tokens from the whole vocabulary: the first are special, and too noisy in bfloat16 to compare  [1, 32]
    vocabulary = decoder.embedding.weight.shape[0]
    ids = (torch.arange(1, 33, device=decoder.device) * vocabulary // 33)[None]
    positions = torch.arange(32, device=ids.device)[None]
    with torch.no_grad():
        theirs = model(input_ids=ids, use_cache=False).logits[0].float()
        states = decoder.run_layers(
            decoder.embed(ids),
            decoder.rope(positions),
            decoder.mask_windows(causal_mask(32, decoder.dtype, decoder.device), positions, positions),
        )
        ours = decoder.logits(states[0]).float()
    relative_error = (ours - theirs).abs().mean() / theirs.std().clamp_min(1e-6)
    return decoder if float(relative_error) < (1e-4 if decoder.dtype == torch.float32 else 0.1) else None
