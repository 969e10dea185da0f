"""What a training will cost on this machine, before it starts: from earlier trainings of the same base, else a guess.

The guess measures one matrix product and counts: a frozen base with LoRAs costs about 4 operations per parameter and
token (forward, and backward by the activations).
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.events import PlanLine
from mta_cli.options import Machine

if TYPE_CHECKING:
    from mta_cli.pipeline.models import ModelEntry
    from store.registry import Registry

RECENT = 8  # adapters whose speed is averaged
SHARE = {"float32": 0.5}  # of the bare matrix rate, reached in training a small transformer on a CPU
HALF_SHARE = 0.1  # the same in 16 bits, where all that is no matrix product weighs more
RUNTIME = 0.7e9  # bytes that the libraries themselves occupy
ACTIVATIONS = 100.0  # bytes per token and root of the parameters: 1.2 MB a token for 135M
KEPT = 0.7  # the same for states that are kept for later steps: 8 kB a token for 135M, if all parts are late ones


@dataclass(frozen=True)
class Cost:
    """Estimated seconds and gigabytes."""

    seconds: float
    gigabytes: float


def cost_lines(
    reg: "Registry", base: "ModelEntry", machine: Machine, tokens: int, tokens_per_step: int, alone: int = 0
) -> tuple[PlanLine, ...]:
    """Tokens, memory and time of a plan, with where the speed is known from; `alone` of the tokens use one device."""
    from mta_cli.engine.base import resolve_devices, resolve_dtype

    devices = resolve_devices(machine.device, machine.dtype)
    dtype = str(resolve_dtype(machine.dtype, devices[0])).removeprefix("torch.")
    parameters, rate = base.detail.get("parameters", 0), known_rate(reg, base.fingerprint, dtype)
    origin = "earlier trainings" if rate else "a matrix product"
    rate = rate or SHARE.get(dtype, HALF_SHARE) * matrix_rate(machine.device, dtype) / (4.0 * max(parameters, 1))
    cost = estimate(parameters, alone + (tokens - alone) // len(devices), tokens_per_step, rate, dtype)
    shown = f"{cost.seconds:.0f} s" if cost.seconds < 120 else f"{cost.seconds / 60:.0f} min"
    return (
        PlanLine("tokens", f"at most {tokens:,}"),
        PlanLine("memory", f"about {cost.gigabytes:.1f} GB{' on each device' if len(devices) > 1 else ''}"),
        PlanLine("time", f"about {shown}", origin),
    )


def estimate(parameters: int, tokens: int, tokens_per_step: int, rate: float, dtype: str) -> Cost:
    """Cost of training on `tokens` tokens, `tokens_per_step` at once, at `rate` tokens a second."""
    from mta_cli.engine.kept import KEEP

    weights = parameters * (4 if dtype == "float32" else 2) * 2  # the folded originals are kept beside them
    activations = ACTIVATIONS * tokens_per_step * parameters**0.5
    kept = min(KEEP, KEPT * tokens * parameters**0.5)
    return Cost(tokens / rate, (RUNTIME + weights + activations + kept) / 1e9)


def known_rate(reg: "Registry", base: str, dtype: str) -> float | None:
    """Tokens per second of the latest adapters trained on this base in this format; None before the first."""
    made = [a for a in reg.adapters.all() if a.base == base and a.config.get("compute") == dtype and a.seconds > 0]
    latest = sorted(made, key=lambda adapter: adapter.created)[-RECENT:]
    return sum(a.tokens for a in latest) / sum(a.seconds for a in latest) if latest else None


def matrix_rate(device: str, dtype: str) -> float:
    """Operations per second of a 512 × 1024 × 1024 product."""
    import torch

    from mta_cli.engine.base import resolve_device, resolve_dtype

    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    a = torch.randn(512, 1024, device=place).to(number)
    b = torch.randn(1024, 1024, device=place).to(number)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 1024 * 1024 / best
