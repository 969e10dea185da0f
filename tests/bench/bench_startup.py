"""How long a person waits for a quick command: `mta --help` and `mta user list` beside `python -c pass`.

They run in turn, so that a busy machine slows all of them alike; a table of medians and one JSON document are printed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 21
ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = [sys.executable]
COMMANDS = {
    "python -c pass": [*PYTHON, "-c", "pass"],
    "mta --version": [*PYTHON, "-m", "mta_cli", "--version"],
    "mta --help": [*PYTHON, "-m", "mta_cli", "--help"],
    "mta user list": [*PYTHON, "-m", "mta_cli", "user", "list"],
    "mta user list --json": [*PYTHON, "-m", "mta_cli", "user", "list", "--json"],
}


def milliseconds(command: list[str], env: dict[str, str]) -> float:
    """Wall time of one run of `command`."""
    start = time.perf_counter()
    subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def measure(folder: Path) -> dict[str, list[float]]:
    """`ROUNDS` wall times of each command, taken in turn, after one round that fills the caches."""
    env = {**os.environ, "MTA_STORE": str(folder / "store"), "MTA_MODELS": str(folder / "models")}
    subprocess.run([*PYTHON, "-m", "mta_cli", "init"], env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            taken = milliseconds(command, env)
            if turn:
                times[name].append(taken)
    return times


def main() -> None:
    """Measure, and print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder))
    floor = statistics.median(times["python -c pass"])
    print(f"{'command':<24}{'median ms':>10}{'over python':>13}{'least':>8}{'most':>8}")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<24}{median:>10.0f}{median - floor:>13.0f}{min(taken):>8.0f}{max(taken):>8.0f}")
    summary = {name: round(statistics.median(taken), 1) for name, taken in times.items()}
    print(json.dumps({"bench": "startup", "rounds": ROUNDS, "median_ms": summary}))


if __name__ == "__main__":
    main()
