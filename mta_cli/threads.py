"""How long OpenMP's threads spin while they wait, chosen once, from how busy the cores are when the program starts.

The runtime reads it when torch is first imported. On idle cores long spinning is faster; beside other processes a
spinning thread holds the core that a working one needs. `benchmarks/bench_load.py` measures both. The number of
threads is never changed: it changes the order of sums, and so the bytes of what is trained.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SPINS, SPINS_BESIDE_OTHERS = 10_000, 0  # 0: a waiting thread sleeps at once
VARIABLE, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
BUSY_CORES = 0.5  # that others keep busy: from here on, one of our threads has to share
WORK = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # the first columns of /proc/stat
IDLE = ("idle", "iowait")


@dataclass(frozen=True)
class CpuTimes:
    """Seconds at a moment: of the clock, of this process, and of everyone on all cores since the machine started."""

    clock: float
    own: float
    everyone: float

    @classmethod
    def read(cls, source: Path = Path("/proc/stat")) -> Self | None:
        """Now; None where the system does not tell."""
        try:
            ticks = dict(zip(WORK, map(int, source.read_text().partition("\n")[0].split()[1:]), strict=False))
            busy = sum(count for name, count in ticks.items() if name not in IDLE) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        return cls(time.monotonic(), time.process_time(), busy)

    def cores_of_others(self, later: Self) -> float:
        """How many cores other processes kept busy from now until `later`."""
        elapsed = later.clock - self.clock
        return max(0.0, (later.everyone - self.everyone) - (later.own - self.own)) / elapsed if elapsed > 0 else 0.0


def choose_spins(start: CpuTimes | None, now: CpuTimes | None, cores: int) -> int:
    """The spins of a waiting thread, where every core has one of our threads."""
    if start is None or now is None or cores < 2:
        return SPINS
    return SPINS_BESIDE_OTHERS if start.cores_of_others(now) >= BUSY_CORES else SPINS


def prepare_threads(start: CpuTimes | None) -> None:
    """Set the spins for the runtime, unless the user has set them or the policy of waiting. `start` is a while ago."""
    if POLICY not in os.environ and VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(choose_spins(start, CpuTimes.read(), os.cpu_count() or 1))


def describe_waiting() -> str:
    """What was chosen, in words."""
    if policy := os.environ.get(POLICY):
        return f"waiting threads are {policy} ({POLICY})"
    if spins := os.environ.get(VARIABLE):
        return f"waiting threads spin {spins} times ({SPINS:,} on idle cores, {SPINS_BESIDE_OTHERS:,} on busy ones)"
    return "waiting threads spin as long as the runtime wants"
