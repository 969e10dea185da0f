"""What a training will cost on this machine, before it starts. An estimate: it measures one matrix product and counts.

A frozen base with LoRAs costs about 4 operations per parameter and token (forward, and backward by the activations).
"""

import time
from dataclasses import dataclass

ATTAINABLE = 0.3  # share of the bare matrix rate that small transformers reach in training on a CPU
RUNTIME = 0.7e9  # bytes that the libraries themselves occupy
ACTIVATIONS = 100.0  # bytes per token and root of the parameters: 1.2 MB a token for 135M


@dataclass(frozen=True)
class Cost:
    """Estimated seconds and gigabytes."""

    seconds: float
    gigabytes: float


def estimate(parameters: int, tokens: int, tokens_per_step: int, dtype: str = "auto") -> Cost:
    """Cost of training on `tokens` tokens, `tokens_per_step` at once, with a base of `parameters` parameters."""
    operations = 4.0 * parameters * tokens
    weights = parameters * (4 if dtype == "float32" else 2) * 2  # the folded originals are kept beside them
    activations = ACTIVATIONS * tokens_per_step * parameters**0.5
    return Cost(operations / (ATTAINABLE * matrix_rate(dtype)), (RUNTIME + weights + activations) / 1e9)


def matrix_rate(dtype: str = "auto") -> float:
    """Operations per second of a 512 × 1024 × 1024 product in the format that training would use here."""
    import torch

    from mta_cli.engine.base import resolve_device, resolve_dtype

    device = resolve_device("auto")
    number = resolve_dtype(dtype, device)
    a = torch.randn(512, 1024, device=device).to(number)
    b = torch.randn(1024, 1024, device=device).to(number)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 1024 * 1024 / best
