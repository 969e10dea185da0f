"""Chooses at the program's start how long waiting OpenMP threads spin, by how busy the cores are.

The runtime reads the value when torch is first imported. On idle cores long spinning is faster; beside other processes
a spinning thread occupies a core that a working one needs. `benchmarks/bench_load.py` measures both. The number of
threads is never changed, because it changes the order of sums and so the bytes of trained adapters.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SPINS, SPINS_BESIDE_OTHERS = 10_000, 0  # 0: a waiting thread sleeps immediately
VARIABLE, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
BUSY_CORES = 0.5  # if other processes use this many cores or more, one of our threads must share a core with them
WORK = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # the first columns of /proc/stat
IDLE = ("idle", "iowait")


@dataclass(frozen=True)
class CpuTimes:
    """CPU times in seconds: of this process (`own`) and of all processes (`everyone`), with the clock's time."""

    clock: float
    own: float
    everyone: float

    @classmethod
    def read(cls, source: Path = Path("/proc/stat")) -> Self | None:
        """The current times; None if the system does not provide them."""
        try:
            ticks = dict(zip(WORK, map(int, source.read_text().partition("\n")[0].split()[1:]), strict=False))
            busy = sum(count for name, count in ticks.items() if name not in IDLE) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        return cls(time.monotonic(), time.process_time(), busy)

    def cores_used_by_others(self, later: Self) -> float:
        """The number of cores that other processes used between these times and `later`."""
        elapsed = later.clock - self.clock
        return max(0.0, (later.everyone - self.everyone) - (later.own - self.own)) / elapsed if elapsed > 0 else 0.0


def choose_spins(start: CpuTimes | None, now: CpuTimes | None, cores: int) -> int:
    """The number of spins of a waiting thread, assuming one of our threads on each core."""
    if start is None or now is None or cores < 2:
        return SPINS
    return SPINS_BESIDE_OTHERS if start.cores_used_by_others(now) >= BUSY_CORES else SPINS


def prepare_threads(start: CpuTimes | None) -> None:
    """Set the number of spins in the environment, unless the user has set it or the wait policy.

    How busy the cores are is measured from the times `start` until now.
    """
    if POLICY not in os.environ and VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(choose_spins(start, CpuTimes.read(), os.cpu_count() or 1))


def describe_thread_spinning() -> str:
    """A sentence on how waiting threads spin, for `mta doctor`."""
    if policy := os.environ.get(POLICY):
        return f"waiting threads are {policy} ({POLICY})"
    if spins := os.environ.get(VARIABLE):
        return f"waiting threads spin {spins} times ({SPINS:,} on idle cores, {SPINS_BESIDE_OTHERS:,} on busy ones)"
    return "waiting threads spin for the runtime's default time"
