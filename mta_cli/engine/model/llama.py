"""A decoder of Llama and its relatives as tensor operations on the base's own weights, with LoRA factors for each row.

It computes the same as transformers' modules in fewer and larger operations: projections that read the same input are
fused. A pass may begin at any layer, from cached states, keys and values.
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

# up to this many keys, matrix products are faster than the fused attention kernel on a CPU
EAGER_ATTENTION_MAX_KEYS = 512
PACKED_MAX_ROWS = 64  # up to this many input rows, oneDNN is about 1.5 times faster with weights in its own layout
HALF_CAPABILITIES = ("AVX2", "AVX512")  # CPUs on which PyTorch multiplies one row by float16 weights at memory speed
# private functions of PyTorch, which a version may lack
ONEDNN_OPS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")

Rope = tuple[Tensor, Tensor]
Ropes = Mapping[str, Rope]  # by the name of the table; see `LayerSpec`
Masks = Tensor | None | Mapping[int | None, Tensor | None]  # a mapping by window if layers have windows
FusedFactors = dict[tuple[int, str], tuple[Tensor, Tensor]]


class PastKeyValues(Protocol):
    """A source of the keys and values of earlier positions."""

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's `k`, `v` [rows, kv heads, new, head width]; return all keys and values so far, in order."""
        ...


@dataclass(frozen=True)
class BatchedLora:
    """The LoRA factors of a batch's rows: `A [blocks, in, rank]` and `B [blocks, rank, out]` by layer and projection.

    The scale is inside B. The rows are divided into blocks of equally many adjacent rows, and the rows of a block share
    factors. Without the first axis, all rows share them. `position_mask` [rows, time, 1] is 1 where the factors act;
    None means everywhere.
    """

    fused_factors: FusedFactors
    position_mask: Tensor | None = None

    def add_delta(self, key: tuple[int, str], x: Tensor, y: Tensor) -> Tensor:
        """`y + B A x` for `x` [rows, time, in] and `y` [rows, time, out]; `y` if there are no factors for `key`."""
        if key not in self.fused_factors:
            return y
        a, b = self.fused_factors[key]
        x = x.to(a.dtype).reshape(len(a) if a.dim() == 3 else 1, -1, x.shape[-1])
        inner = x @ a  # [blocks, rows · time, rank]
        if self.position_mask is not None:
            inner = inner * self.position_mask.view(*inner.shape[:2], 1)
        return y + (inner @ b).view_as(y).to(y.dtype)


class FusedLinear:
    """One or several frozen linear modules that read the same input, with their weights concatenated in one tensor.

    The modules' own weights become views of this tensor, so a merge into a module is visible here without a second
    copy.
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
        """`[…, in]` → `[…, Σ out]`. With `read_copies`, a pass of few rows uses a copy of the weight, if any."""
        if read_copies and not x.requires_grad:
            rows = x.numel() // x.shape[-1]
            if self._half is not None and rows == 1:
                return F.linear(x.half(), self._half).to(x.dtype)
            if self._packed is not None and rows <= PACKED_MAX_ROWS:
                packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
                return packed
        return F.linear(x, self.weight, self.bias)

    def pack_onednn(self) -> None:
        """Make a copy of the current weight in oneDNN's layout."""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)

    def copy_as_half(self) -> None:
        """Make a float16 copy of the current weight, unless there is a bias.

        Float16 represents every bfloat16 number with an absolute value from 2⁻¹⁴ to 65,280 exactly; smaller ones are
        rounded.
        """
        if self._half is None and self.bias is None:
            self._half = self.weight.half()

    def drop_copies(self) -> None:
        """Drop all copies: the weight has changed, or is about to."""
        self._packed = self._half = None

    @property
    def has_half(self) -> bool:
        """Whether there is a float16 copy."""
        return self._half is not None

    def drop_half(self) -> None:
        """Drop the float16 copy."""
        self._half = None


class SeparateLinears:
    """Linear modules that read the same input, called one by one because a weight is packed, for example in NF4.

    The modules' hooks run.
    """

    def __init__(self, *modules: nn.Linear) -> None:
        self.modules = modules

    def __call__(self, x: Tensor, read_copies: bool = False) -> Tensor:
        """`[…, in]` → `[…, Σ out]`. There are no copies of the weights, so `read_copies` has no effect."""
        outputs = [module(x) for module in self.modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _join(*modules: nn.Linear) -> FusedLinear | SeparateLinears:
    plain = all(has_plain_weight(module) for module in modules)
    return FusedLinear(*modules) if plain else SeparateLinears(*modules)


class RMSNorm:
    """Root-mean-square normalisation (Zhang & Sennrich, arXiv 1910.07467) with the module's own weight.

    If the module multiplies by 1 + w, that sum is stored here in float32, in which the module computes it.
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
        # A single state on a CPU takes two tensor operations instead of eight, because the scale is computed in Python.
        length = float(torch.linalg.vector_norm(x, dtype=torch.float32))
        scale = math.sqrt(width) / math.hypot(length, math.sqrt(width * self.eps))
        return torch.addcmul(self._nothing, x, self.weight, value=scale)


def _multiplies_by_one_plus_weight(module: Any) -> bool:
    weight = module.weight.detach()
    with torch.no_grad():
        found = module(torch.ones_like(weight)).float()  # the RMS of ones is 1, so the output is the norm's factor
    return bool((found - 1.0 - weight.float()).abs().max() < (found - weight.float()).abs().max())


class DecoderLayer:
    """One decoder layer, as `spec` describes it."""

    def __init__(self, module: Any, spec: LayerSpec) -> None:
        self.spec = spec
        self.norm_in, self.norm_attention, self.norm_mid, self.norm_mlp = (
            RMSNorm(getattr(module, name)) if name is not None else lambda x: x for name in astuple(spec.norms)
        )
        self.projections = {name: _join(*map(module.get_submodule, paths)) for name, paths in spec.projections.items()}
        attention = module.self_attn
        self.norm_q, self.norm_k = (
            _head_norm(getattr(attention, name, None), attention.head_dim) for name in ("q_norm", "k_norm")
        )


def _head_norm(module: Any, head_dim: int) -> Callable[[Tensor], Tensor] | None:
    """A norm over `[rows, time, heads, head width]`: of each head separately, or of all heads together."""
    if module is None:
        return None
    norm = RMSNorm(module)
    return norm if norm.weight.numel() == head_dim else lambda x: norm(x.flatten(2)).view_as(x)


@dataclass(frozen=True)
class _LayerInputs:
    """The inputs that all layers of a pass share; see `LlamaDecoder.run_layers`. `masks` are by window."""

    rope: Ropes
    masks: Mapping[int | None, Tensor | None]
    loras: Sequence[BatchedLora]
    past: PastKeyValues | None
    read_copies: bool


class LlamaDecoder:
    """The decoder of a causal language model. `build_llama_decoder` makes one if it computes the same logits as the
    model.
    """

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
        self._half_overflows = False  # whether an activation was too large for float16
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
        """Every projection with plain weights; the head comes last."""
        found = (one for layer in self.layers for one in layer.projections.values() if isinstance(one, FusedLinear))
        return [*found, self.head]

    def pack_weights(self, *, one_row: bool = True, many_rows: bool = True) -> None:
        """Copy the current bfloat16 weights for decoding steps of few rows on a CPU.

        Steps of one row use a float16 copy (`one_row`), steps of several rows a copy in oneDNN's layout (`many_rows`).
        """
        if self.dtype != torch.bfloat16 or self.device.type != "cpu":
            return
        for projection in self.all_projections():
            if one_row and not self._half_overflows and torch.backends.cpu.get_cpu_capability() in HALF_CAPABILITIES:
                projection.copy_as_half()
            if many_rows and _onednn_packs_bfloat16():
                projection.pack_onednn()

    def invalidate_caches(self) -> None:
        """Drop everything computed from the weights. Call it before or after changing them."""
        for projection in self.all_projections():
            projection.drop_copies()
        self.activation_cache.clear()

    def embed(self, ids: Tensor) -> Tensor:
        """States before layer 0, [rows, time, width], of token `ids` [rows, time]."""
        result: Tensor = self.embedding(ids)
        return result

    def rope(self, positions: Tensor) -> Ropes:
        """Cosines and sines at `positions` [rows, time], each [rows, time, 1, head width], for each rotary table.

        The first half of the sines is negated, so that `torch.roll` replaces the rotation of halves.
        """
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
        """Cosines and sines at positions `steps`, the first half of the sines negated: rotating is then one roll."""
        cos, sin = self._rotary(self.head.weight, steps[None], *(() if name == ONE_ROPE else (name,)))
        cos, sin = cos[0].to(self.dtype, copy=True), sin[0].to(self.dtype, copy=True)
        sin[..., : self.head_dim // 2].neg_()
        return cos, sin

    def mask_windows(self, mask: Tensor | None, positions: Tensor, key_positions: Tensor) -> Masks:
        """The mask for each attention window of this decoder's layers; `mask` itself if no layer has a window.

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

        `mask` [rows or 1, 1, 1, time, keys] is added to attention scores; None adds nothing. If the decoder has
        `windows`, pass the result of `mask_windows`. `loras` act on their own rows. `past` has the keys and values of
        earlier positions and takes the new ones. With `read_copies`, passes of few rows use the copies of
        `pack_weights`, which round differently.

        Within `recomputing_layers`, `past` gets a layer's keys and values twice where gradients are needed.
        """
        masks: Mapping[int | None, Tensor | None] = mask if isinstance(mask, Mapping) else {None: mask}
        layers = range(first, len(self.layers) if last is None else last)
        inputs = _LayerInputs(rope, masks, loras, past, read_copies)
        found = self._run_layers(x, layers, inputs)
        one_row = read_copies and x.numel() == x.shape[-1]
        if one_row and self.head.has_half and not bool(torch.isfinite(found).all()):
            # An activation was too large for float16: run the step again, and from now on without the float16 copy.
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
        # 1. queries, keys and values by one matrix product  [rows, time, heads + 2 · kv heads, head width]
        qkv = self._project(i, "qkv", x, inputs).view(rows, time, -1, self.head_dim)
        qk, v = torch.split(qkv, [self.heads + self.kv_heads, self.kv_heads], 2)
        if layer.norm_q is not None and layer.norm_k is not None:
            q, k = torch.split(qk, [self.heads, self.kv_heads], 2)
            qk = torch.cat([layer.norm_q(q), layer.norm_k(k)], 2)
        # 2. rotary embedding of queries and keys together
        if layer.spec.rope is not None:
            cos, sin = inputs.rope[layer.spec.rope]
            qk = torch.addcmul(qk * cos, torch.roll(qk, qk.shape[-1] // 2, -1), sin)
        q, k = torch.split(qk, [self.heads, self.kv_heads], 2)
        # 3. append keys and values to the earlier ones  [rows, kv heads, keys, head width]
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
        # One new position: pass the query heads of a group to the fused kernel as if they were positions of one head.
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
        # Few keys on a CPU, or soft-capped scores, which the kernel does not support: matrix products.
        # 1. group queries by their shared key head  [rows, kv heads, groups, time, head width]
        q = (q * self.scaling).view(rows, time, self.kv_heads, groups, width).permute(0, 2, 3, 1, 4)
        # 2. scores  [rows, kv heads, groups · time, keys]
        scores = q.reshape(rows, self.kv_heads, groups * time, width) @ k.transpose(2, 3)
        if self.score_cap is not None:
            scores = soft_cap(scores, self.score_cap)
        if mask is not None:
            scores = (scores.view(rows, self.kv_heads, groups, time, keys) + mask).view_as(scores)
        # 3. weighted values, heads concatenated  [rows, time, heads · head width]
        output = (torch.softmax(scores, -1) @ v).view(rows, self.kv_heads, groups, time, width)
        return output.permute(0, 3, 1, 2, 4).reshape(rows, time, heads * width)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """`cap · tanh(x / cap)`: between −cap and cap, and almost `x` for small values."""
    return cap * torch.tanh(x / cap)


def _onednn_packs_bfloat16() -> bool:
    """Whether this PyTorch and CPU support oneDNN's products with reordered bfloat16 weights."""
    ops = torch.ops.mkldnn
    return all(hasattr(ops, name) for name in ONEDNN_OPS) and bool(ops._is_mkldnn_bf16_supported())


def causal_mask(time: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask to add to attention scores [1, 1, 1, time, time]: −∞ for keys later than the query."""
    mask = torch.full((time, time), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(1)[None, None, None]


def build_llama_decoder(model: Any) -> LlamaDecoder | None:
    """The decoder of `model`; None if its layers are unknown or the decoder's logits differ from the model's."""
    if (spec := read_decoder_spec(model)) is None:
        return None
    decoder = LlamaDecoder(model, spec)
    # 32 tokens spread over the vocabulary; the first ids are special tokens, too noisy in bfloat16 to compare  [1, 32]
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
