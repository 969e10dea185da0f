"""The memory of a process with a base: computed from the base's shape, and divided between uses under `--max-memory`.

All numbers are estimates of resident memory on a CPU; `docs/bases.md` compares them with measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mta_cli.errors import Command, Flag, UsageError, Words

if TYPE_CHECKING:
    from mta_cli.engine.model.load import MemoryLimits
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.models.manifest import ModelEntry

Use = Literal["train", "answer"]

PROGRAM_BYTES = 800 * 10**6  # measured: libraries, the embedder, and freed memory kept by the allocator
PASS_TOKENS = 1024  # tokens of a training pass on a CPU: `CPU_BATCH_TOKENS` of the engine
ROW_TOKENS = 128  # assumed tokens of a training example if there are no data
ANSWER_SHARE = 1 / 8  # assumed share of answer tokens, which have logits
CONTEXT_TOKENS = 4096  # tokens of a served conversation
HELD_LOGITS = 1 << 23  # the logits in memory at once in a pass: `CPU_MAX_LOGITS` of the engine
# copies of bfloat16 weights on a CPU: the file's and the fused layers'; for answers also two packed copies
FAST_COPIES = {"train": 2, "answer": 4}
# bytes per weight: 4 bits, an 8-bit scale for 64 weights, and a float32 scale for 256 of these scales
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
FACTOR_BYTES = 4 * 4  # a trained number in float32: value, gradient and two moments
FROZEN_BYTES = 4  # a number of a frozen LoRA, in float32


@dataclass(frozen=True)
class Shape:
    """The sizes that determine a base's memory. Layers without attention have no heads.

    `fast` says whether the fast decoder supports the base.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    parameters: int
    fast: bool = True

    @property
    def projections(self) -> int:
        """The number of parameters in the linear layers of all decoder layers."""
        attention = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * self.width * (attention + 3 * self.inner)

    @property
    def factor_widths(self) -> int:
        """The summed input and output widths of one layer's linear modules: a layer's LoRA parameters per rank."""
        attention = 4 * self.width + self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * (self.width + self.inner)


def read_shape(entry: ModelEntry, *, fast: bool = True) -> Shape:
    """The shape of an installed base, from its configuration. Raises BadInput if the file cannot be read."""
    from transformers import AutoConfig

    from mta_cli.engine.model.checkpoint_files import load_errors_as_bad_input
    from mta_cli.engine.model.load import quiet_libraries

    quiet_libraries()
    with load_errors_as_bad_input(f"{entry.path} cannot be read as a causal language model"):
        config: Any = AutoConfig.from_pretrained(entry.path, trust_remote_code=False, local_files_only=True)
        config = config.get_text_config()
        width, heads = int(config.hidden_size), _largest(config, "num_attention_heads")
        return Shape(
            layers=int(config.num_hidden_layers),
            width=width,
            heads=heads,
            kv_heads=_largest(config, "num_key_value_heads") or heads,
            head_dim=(_largest(config, "head_dim") or width // heads) if heads else 0,
            inner=_largest(config, "intermediate_size") or (_largest(config, "expand") or 4) * width,
            vocabulary=int(config.vocab_size),
            parameters=int(entry.detail.get("parameters", 0)),
            fast=fast,
        )


def _largest(config: Any, name: str) -> int:
    """The largest value of a setting in any layer; 0 if missing: Mamba, RWKV and xLSTM have no heads."""
    layers = getattr(config, "per_layer_config", None)  # Gemma 4 has different head sizes in different layers
    found = [getattr(layer, name, None) or 0 for layer in layers or (config,)]
    return max(int(max(one) if isinstance(one, list | tuple) else one) for one in found)


def weight_bytes(shape: Shape, precision: str, use: Use) -> int:
    """The bytes of the weights in the number format `precision`, including all copies for a use.

    Training keeps the projections twice, without and with the merged task adapter, unless they are nf4.
    """
    number = number_bytes(precision)
    if precision.startswith("nf4"):
        rest = shape.parameters - shape.projections
        return round(NF4_BYTES * shape.projections) + number * rest
    copies = FAST_COPIES[use] if shape.fast and number == 2 else 1
    return number * (copies * shape.parameters + (shape.projections if use == "train" else 0))


def training_pass_bytes(
    shape: Shape, precision: str, tokens: int, row: int, layers: int, *, recomputes: bool = False
) -> int:
    """The bytes that a training pass of `tokens` tokens, in rows of `row`, keeps for its backward pass: the states of
    `layers` layers, and the logits.

    It describes the fast decoder; transformers' modules keep more. If the backward pass `recomputes` layers, only the
    states before each layer and one complete layer are kept.
    """
    per_token = (
        4 * shape.width  # residual stream and normalised states, before attention and before the MLP
        + shape.head_dim * (3 * shape.heads + 2 * shape.kv_heads)  # queries twice, keys, values, attention's output
        + shape.heads * row  # attention weights
        + 4 * shape.inner  # gate, its activation, up, and their product
    )
    if precision.startswith("nf4"):  # outputs of queries, keys, values, gate and up before they are joined
        per_token += shape.head_dim * (shape.heads + 2 * shape.kv_heads) + 2 * shape.inner
    logits = 3 * 4 * min(HELD_LOGITS, round(tokens * ANSWER_SHARE) * shape.vocabulary)
    kept = layers * shape.width + per_token if recomputes else layers * per_token
    return number_bytes(precision) * tokens * kept + logits


def number_bytes(precision: str) -> int:
    """The bytes of an unpacked number in a number format."""
    return 4 if precision.endswith("float32") else 2


def training_bytes(shape: Shape, precision: str) -> int:
    """The most memory of a training without its data, in bytes: one pass of `PASS_TOKENS` in all layers."""
    passes = training_pass_bytes(shape, precision, PASS_TOKENS, ROW_TOKENS, shape.layers)
    return PROGRAM_BYTES + weight_bytes(shape, precision, "train") + passes


def answering_bytes(shape: Shape, precision: str) -> int:
    """The most memory of a server with one conversation of `CONTEXT_TOKENS`, in bytes."""
    key_values = number_bytes(precision) * 2 * shape.layers * shape.kv_heads * shape.head_dim * CONTEXT_TOKENS
    return PROGRAM_BYTES + weight_bytes(shape, precision, "answer") + key_values


def loading_limits(entry: ModelEntry, machine: MachineOptions, use: Use) -> MemoryLimits:
    """The memory limits with which to load a base. Raises UsageError if it does not fit into `--max-memory`."""
    from mta_cli.engine.model.load import MemoryLimits, family_without_decoder, number_format

    most = machine.memory_limit
    if most is None:
        return MemoryLimits()
    shape = read_shape(entry, fast=family_without_decoder(entry.path) is None)
    require_memory(entry.name, machine, lambda precision: least_bytes(shape, precision, use))
    return divide_memory(shape, number_format(machine.dtype, machine.device, machine.quantize), use, most)


def divide_memory(shape: Shape, precision: str, use: Use, most: int) -> MemoryLimits:
    """Limits within `most` bytes. Program and weights are subtracted, and the rest is divided.

    Half is for passes through the model, a quarter for KV caches, and a quarter for adapters that are trained together.
    """
    from mta_cli.engine.model.load import MemoryLimits

    usual, spare = MemoryLimits(), max(0, most - PROGRAM_BYTES - weight_bytes(shape, precision, use))
    one = training_pass_bytes(shape, precision, ROW_TOKENS, ROW_TOKENS, shape.layers) / ROW_TOKENS
    tokens = max(1, int(spare / 2 / one))  # a longer row gets its own pass, which recomputes layers
    return MemoryLimits(
        tokens if tokens < PASS_TOKENS else None,
        min(usual.cache_bytes, spare // 4),
        min(usual.group_bytes, spare // 4),
    )


def least_bytes(shape: Shape, precision: str, use: Use) -> int:
    """The minimum memory of a use, in bytes. A training needs a pass of one row, and as much again for the rest."""
    if use == "answer":
        return answering_bytes(shape, precision)
    passes = training_pass_bytes(shape, precision, ROW_TOKENS, ROW_TOKENS, shape.layers, recomputes=shape.fast)
    return PROGRAM_BYTES + weight_bytes(shape, precision, use) + 2 * passes


def require_memory(name: str, machine: MachineOptions, needed: Callable[[str], int]) -> None:
    """Raises UsageError if `needed(precision)` bytes exceed `--max-memory`; the hint names formats that fit."""
    from mta_cli.engine.model.load import number_format

    most, precision = machine.memory_limit, number_format(machine.dtype, machine.device, machine.quantize)
    if most is None or needed(precision) <= most:
        return
    smaller = (
        (_changed_flags(machine, dtype, quantize), needed(other))
        for dtype in dict.fromkeys((machine.dtype, "bfloat16"))
        for quantize in dict.fromkeys((machine.quantize, "nf4"))
        if (other := number_format(dtype, machine.device, quantize)) != precision
    )
    fitting = next(((flags, f" takes about {format_gigabytes(size)}") for flags, size in smaller if size <= most), None)
    raise UsageError(
        (
            f"{name} in {precision} takes about {format_gigabytes(needed(precision))}, and ",
            Flag("max_memory"),
            f" is {format_gigabytes(most)}.",
        ),
        hint=fitting
        or ("choose a smaller base (", Command("model list", available=True), "), or lower ", Flag("history_items")),
    )


def _changed_flags(machine: MachineOptions, dtype: str, quantize: str) -> Words:
    if dtype == machine.dtype:
        return Flag("quantize", quantize)
    if quantize == machine.quantize:
        return Flag("dtype", dtype)
    return (Flag("dtype", dtype), " ", Flag("quantize", quantize))


def format_gigabytes(size: int) -> str:
    """Bytes as text, in gigabytes."""
    return f"{size / 1e9:.1f} GB"
