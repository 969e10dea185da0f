"""The time of quick commands compared with a bare interpreter. The aim is at most 100 ms more.

The store has the included sample's 28 users. Every run is a separate process with cached bytecode, as on a user's
machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from mta_cli.pipeline.demo import SAMPLE

ROUNDS = 21
AIM = 100.0  # milliseconds
BARE = "python -c pass"
LINES = (
    "--version",
    "--help",
    "user list",
    "user list --json",
    "user show bryn",
    "user items bryn",
    "bank list",
    "model list",
    "task list",
    "task show taste",
)


def environment(folder: Path) -> dict[str, str]:
    """An environment with a store in `folder`, in which Python caches bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "MTA_STORE": str(folder / "store"), "PYTHONPATH": str(Path(__file__).parents[1])}


def mta(line: Sequence[str]) -> list[str]:
    """The command line of `mta …`."""
    return [sys.executable, "-m", "mta_cli", *line]


def fill(env: Mapping[str, str], task: str = "taste") -> None:
    """Make the store, and import the sample's users of a task."""
    for line in (
        ["init"],
        ["task", "add", str(SAMPLE / f"{task}.toml")],
        ["data", "import", "users", str(SAMPLE / f"{task}.users.json"), "--task", task],
    ):
        subprocess.run(mta(line), env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def running(command: Sequence[str], env: Mapping[str, str]) -> Callable[[], None]:
    """A side of the measurement: one process, from its start to its end."""

    def run() -> None:
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return run


def main() -> None:
    """Measure, and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder))
        fill(env)
        sides = {BARE: running([sys.executable, "-c", "pass"], env)}
        sides |= {f"mta {line}": running(mta(line.split()), env) for line in LINES}
        runs = harness.interleave(sides, ROUNDS)
    times = {name: [run.seconds * 1e3 for run in taken] for name, taken in runs.items()}
    floor = statistics.median(times[BARE])
    rows: list[dict[str, Any]] = [
        {
            "command": name,
            "median ms": statistics.median(taken),
            "over python": statistics.median(taken) - floor,
            "% of aim": 100 * (statistics.median(taken) - floor) / AIM,
            "least": min(taken),
            "most": max(taken),
        }
        for name, taken in times.items()
    ]
    harness.report("startup", rows, rounds=ROUNDS, aim_ms=AIM)


if __name__ == "__main__":
    main()
