"""Axes of plots: round tick values, and the cell of a value. Knows no characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high` over `cells` cells, the first of which is 0."""

    low: float
    high: float
    cells: int

    def cell(self, value: float) -> int:
        """The cell of a value, clipped to the axis."""
        reach = self.high - self.low
        part = 0.5 if reach <= 0 else (value - self.low) / reach
        return min(max(round(part * (self.cells - 1)), 0), max(self.cells - 1, 0))

    def ticks(self, wanted: int) -> list[float]:
        """Round numbers within the axis, about as many as wanted."""
        reach = self.high - self.low
        if reach <= 0 or not math.isfinite(reach):
            return [self.low]
        rough = reach / max(wanted, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) + 0.0 for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def fit_scale(values: Sequence[float], cells: int, *, margin: float = 0.03) -> Scale:
    """An axis that holds all finite values with a little room at both ends."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    room = (high - low) * margin or max(abs(high), 1.0) * margin
    return Scale(low - room, high + room, cells)


def format_tick(value: float) -> str:
    """A tick's value with only the needed decimals, at most four."""
    return f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−") or "0"
