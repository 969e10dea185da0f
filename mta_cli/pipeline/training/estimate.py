"""Estimates the cost of a training on this machine: time from earlier trainings of the same base and placement, tokens
from a sample of the data, and memory from the base's shape.

Without earlier trainings, the estimate measures one matrix product. A frozen base with LoRAs costs about 4 operations
per parameter and token (forward, and backward through the activations).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.errors import MtaError
from mta_cli.events import PlanLine
from mta_cli.options import MachineOptions
from mta_cli.pipeline.models.memory import (
    FACTOR_BYTES,
    FROZEN_BYTES,
    PASS_TOKENS,
    PROGRAM_BYTES,
    Shape,
    divide_memory,
    format_gigabytes,
    number_bytes,
    read_shape,
    require_memory,
    training_pass_bytes,
    weight_bytes,
)

if TYPE_CHECKING:
    from mta_cli.engine.model.load import MemoryLimits
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import Item
    from store.registry import Registry

RECENT_ADAPTERS = 8  # adapters whose speed is averaged
FLOAT32_EFFICIENCY = 0.5  # share of the matrix product's rate that training a small transformer reaches on a CPU
# lower, because other operations take more of the time: .1 to .45, depending on the machine
HALF_PRECISION_EFFICIENCY = 0.25
# training speed relative to all layers, for a base whose adapters were never timed on this machine
PLACEMENT_SPEEDUP = {"all": 1.0, "upper": 2.0, "late": 20.0}
SAMPLED_ROWS = 128  # training rows whose tokens are counted


@dataclass(frozen=True)
class RowTokens:
    """The tokens of training rows: their mean and their maximum."""

    mean: float
    longest: int


@dataclass(frozen=True)
class TokenLoad:
    """A training load: `count` tokens, `distinct` of them different, for adapters of one `placement` and `rank`.

    At most `adapters` adapters train at a time, each above frozen LoRAs with a total rank of `frozen_rank`.
    """

    count: int
    placement: str
    distinct: int = 0
    adapters: int = 1
    rank: int = 0
    frozen_rank: int = 0


def sample_row_tokens(
    reg: Registry,
    base: ModelEntry,
    task: Task,
    items: Sequence[Item],
    history_items: int,
    mix: Sequence[int] | None = None,
) -> RowTokens:
    """The tokens of the training rows of `items`, counted in a sample; for `mix` see `PromptRowBuilder.training_rows`.

    Raises BadInput if the base's folder cannot be read.
    """
    from mta_cli.engine.model.load import read_base_info
    from mta_cli.pipeline.data.examples import PromptRowBuilder

    if not items:
        return RowTokens(0.0, 0)
    info = read_base_info(base.path, name=base.name, fingerprint=base.fingerprint)
    sampled = items[:: max(1, len(items) // SAMPLED_ROWS)]
    rows = PromptRowBuilder(reg, info, task, history_items).training_rows(sampled, mix=mix)
    lengths = [len(row.input_ids) for row in rows]
    return RowTokens(sum(lengths) / len(lengths), max(lengths))


def cost_lines(
    reg: Registry,
    base: ModelEntry,
    machine: MachineOptions,
    loads: Sequence[TokenLoad],
    rows: RowTokens,
    batch_size: int,
) -> tuple[PlanLine, ...]:
    """Tokens, memory and time of a plan with `batch_size` rows per step, and the source of the speed.

    Raises UsageError if the memory exceeds the machine options' limit.
    """
    from mta_cli.engine.model.load import number_format

    precision = number_format(machine.dtype, machine.device, machine.quantize)
    parameters, busy = base.detail.get("parameters", 0), [each for each in loads if each.count]
    shape = read_shape(base, fast=_family_without_decoder(base) is None)
    step = math.ceil(rows.mean * batch_size)
    most = machine.memory_limit

    def needed(precision: str) -> int:
        limits = None if most is None else divide_memory(shape, precision, "train", most)
        return estimate_memory(shape, precision, busy, rows, step, limits)

    require_memory(base.name, machine, needed)
    rates = {each.placement: measured_token_rate(reg, base.fingerprint, precision, each.placement) for each in busy}
    guess = 0.0
    if None in rates.values():
        efficiency = FLOAT32_EFFICIENCY if precision.endswith("float32") else HALF_PRECISION_EFFICIENCY
        guess = efficiency * measure_matmul_rate(machine.device, machine.dtype) / (4.0 * max(parameters, 1))
    seconds = sum(each.count / (rates[each.placement] or guess * PLACEMENT_SPEEDUP[each.placement]) for each in busy)
    return (
        PlanLine("tokens", f"about {sum(each.count for each in busy):,}"),
        PlanLine("memory", f"about {format_gigabytes(needed(precision))}"),
        PlanLine("time", f"about {format_duration(seconds)}", "a matrix product" if guess else "earlier trainings"),
        *slow_path_lines(base),
    )


def slow_path_lines(base: ModelEntry) -> tuple[PlanLine, ...]:
    """A line if the base runs through transformers' modules, because the fast decoder does not support its family.

    An unreadable folder is ignored here; loading reports it.
    """
    family = _family_without_decoder(base)
    return () if family is None else (PlanLine("speed", f"slower: no fast path for {family}"),)


def _family_without_decoder(base: ModelEntry) -> str | None:
    from mta_cli.engine.model.load import family_without_decoder

    try:
        return family_without_decoder(base.path)
    except MtaError:
        return None


def format_duration(seconds: float) -> str:
    """A duration as text, in s, min or h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def estimate_memory(
    shape: Shape,
    precision: str,
    loads: Sequence[TokenLoad],
    rows: RowTokens,
    step_tokens: int,
    limits: MemoryLimits | None = None,
) -> int:
    """The peak memory in bytes of a training with `step_tokens` tokens in each adapter's step, within `limits`.

    It is the weights plus the largest of the `loads`: a pass, cached states, and a group's factors.
    """
    from mta_cli.engine.model.load import MemoryLimits

    limits = limits or MemoryLimits()
    sizes = [0]
    for load in loads:
        layers = shape.layers if load.placement == "all" else max(1, shape.layers // 3)
        tokens = max(rows.longest, min(limits.batch_tokens or PASS_TOKENS, step_tokens * load.adapters))
        at_once = limits.batch_tokens
        recomputes = shape.fast and load.placement != "late" and at_once is not None and rows.longest > at_once
        passes = training_pass_bytes(shape, precision, tokens, rows.longest, layers, recomputes=recomputes)
        # the numbers cached for a token before the LoRA's first position
        key_values = 2 * layers * shape.kv_heads * shape.head_dim
        each_token = {"all": 0, "upper": shape.width, "late": key_values}[load.placement]
        states = number_bytes(precision) * each_token * load.distinct
        each_rank = layers * shape.factor_widths * load.adapters
        factors = (FACTOR_BYTES * load.rank + FROZEN_BYTES * load.frozen_rank) * each_rank
        sizes.append(passes + min(limits.cache_bytes, states) + min(limits.group_bytes, factors))
    return PROGRAM_BYTES + weight_bytes(shape, precision, "train") + max(sizes)


def measured_token_rate(reg: Registry, base: str, dtype: str, placement: str) -> float | None:
    """Tokens per second of the latest adapters of this base, number format and placement; None without any."""
    from mta_cli.engine.lora.adapter import Placement

    alike = [each for each in reg.adapters.placements(base) if Placement.parse(each).name == placement]
    latest = reg.adapters.latest_trained(base, dtype, alike, RECENT_ADAPTERS)
    return sum(a.tokens for a in latest) / sum(a.seconds for a in latest) if latest else None


def measure_matmul_rate(device: str, dtype: str, rows: int = 512, width: int = 1024) -> float:
    """Operations per second of a [rows, width] @ [width, width] product, the fastest of five."""
    import torch

    from mta_cli.engine.model.load import resolve_device, resolve_dtype

    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    a = torch.randn(rows, width, device=place).to(number)
    b = torch.randn(width, width, device=place).to(number)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # reading a number synchronises with the device
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * width / best


def require_device(machine: MachineOptions) -> None:
    """Raise UsageError if this machine lacks the device, or the device does not support the dtype or quantisation."""
    from mta_cli.engine.model.load import require_quantize, resolve_device, resolve_dtype

    device = resolve_device(machine.device)
    resolve_dtype(machine.dtype, device)
    require_quantize(machine.quantize, device)


def dtype_slowdown(machine: MachineOptions) -> float:
    """The slowdown of a small matrix product in the machine's number format against float32; 1 except on a CPU.

    A CPU without 16-bit arithmetic emulates it, which can be tens of times slower.
    """
    if machine.dtype in ("auto", "float32"):
        return 1.0
    from mta_cli.engine.model.load import resolve_device

    if resolve_device(machine.device).type != "cpu":
        return 1.0
    exact, rounded = (measure_matmul_rate(machine.device, dtype, 128, 512) for dtype in ("float32", machine.dtype))
    return exact / rounded
