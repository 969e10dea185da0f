"""Estimates what a training costs on this machine, from earlier trainings of the same base and placement.

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

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

RECENT_ADAPTERS = 8  # adapters whose speed is averaged
FLOAT32_EFFICIENCY = 0.5  # of the bare matrix rate, reached in training a small transformer on a CPU
HALF_PRECISION_EFFICIENCY = 0.25  # more time goes into other operations: .1 to .45, depending on the machine
PLACEMENT_SPEEDUP = {"all": 1.0, "upper": 2.0, "late": 20.0}  # relative to all layers, without earlier measurements
RUNTIME_BYTES = 0.7e9  # bytes that the libraries occupy
ACTIVATION_BYTES = 100.0  # bytes per token and root of the parameters: 1.2 MB a token for 135M
CACHED_STATE_BYTES = 0.7  # the same for states that are kept for later steps of late parts: 8 kB a token for 135M


@dataclass(frozen=True)
class TokenLoad:
    """At most `count` tokens that adapters of one `placement` are trained on."""

    count: int
    placement: str


def cost_lines(
    reg: Registry, base: ModelEntry, machine: MachineOptions, tokens: Sequence[TokenLoad], step: int
) -> tuple[PlanLine, ...]:
    """Tokens, memory and time of a plan with `step` tokens per step, and the source of the speed."""
    from mta_cli.engine.model.load import dtype_name

    dtype = dtype_name(machine.dtype, machine.device)
    parameters, busy = base.detail.get("parameters", 0), [each for each in tokens if each.count]
    rates = {each.placement: measured_token_rate(reg, base.fingerprint, dtype, each.placement) for each in busy}
    guess = 0.0
    if None in rates.values():
        efficiency = FLOAT32_EFFICIENCY if dtype == "float32" else HALF_PRECISION_EFFICIENCY
        guess = efficiency * measure_matmul_rate(machine.device, dtype) / (4.0 * max(parameters, 1))
    seconds = sum(each.count / (rates[each.placement] or guess * PLACEMENT_SPEEDUP[each.placement]) for each in busy)
    gigabytes = estimate_memory_gb(
        parameters, sum(each.count for each in busy if each.placement == "late"), step, dtype
    )
    return (
        PlanLine("tokens", f"at most {sum(each.count for each in busy):,}"),
        PlanLine("memory", f"about {gigabytes:.1f} GB"),
        PlanLine("time", f"about {format_duration(seconds)}", "a matrix product" if guess else "earlier trainings"),
        *speed_lines(base),
    )


def speed_lines(base: ModelEntry) -> tuple[PlanLine, ...]:
    """A line where transformers' modules compute with the base instead of the decoder.

    A folder that cannot be read is no error here; loading it reports that.
    """
    from mta_cli.engine.model.load import family_without_decoder

    try:
        family = family_without_decoder(base.path)
    except MtaError:
        return ()
    return () if family is None else (PlanLine("speed", f"several times slower: no fast path for {family}"),)


def format_duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def estimate_memory_gb(parameters: int, kept_tokens: int, step: int, dtype: str) -> float:
    """Gigabytes of a training with `step` tokens per step, and cached states of `kept_tokens` where they fit."""
    from mta_cli.engine.model.activation_cache import ACTIVATION_CACHE_BYTES

    weights = parameters * (4 if dtype == "float32" else 2) * 2  # the folded originals are kept beside them
    kept = min(ACTIVATION_CACHE_BYTES, CACHED_STATE_BYTES * kept_tokens * math.sqrt(parameters))
    return (RUNTIME_BYTES + weights + ACTIVATION_BYTES * step * math.sqrt(parameters) + kept) / 1e9


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
        float((a @ b)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * width / best


def require_device(machine: MachineOptions) -> None:
    """Raise UsageError where this machine lacks the device, or the device lacks the number format."""
    from mta_cli.engine.model.load import resolve_device, resolve_dtype

    resolve_dtype(machine.dtype, resolve_device(machine.device))


def dtype_slowdown(machine: MachineOptions) -> float:
    """How many times slower a small product is in the machine's number format than in float32; 1 except on a CPU.

    A CPU without 16-bit arithmetic emulates it, which can be tens of times slower.
    """
    if machine.dtype in ("auto", "float32"):
        return 1.0
    from mta_cli.engine.model.load import resolve_device

    if resolve_device(machine.device).type != "cpu":
        return 1.0
    exact, rounded = (measure_matmul_rate(machine.device, dtype, 128, 512) for dtype in ("float32", machine.dtype))
    return exact / rounded
