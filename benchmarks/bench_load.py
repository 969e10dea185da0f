"""Training, scoring and decoding while other processes are busy, under several settings of OpenMP's threads.

Waiting threads spin for a while before they sleep. Beside a busy process a spinning thread occupies a core that a
working thread needs. Every cell is a separate process; settings take turns within each load. The last column is the
share of the best setting's rate under the same load, in the worst kind of work. The aim is at least 80 % under every
load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks import harness
from mta_cli.threads import CpuTimes, prepare_threads

SHIPPED = "as shipped"
SETTINGS: dict[str, dict[str, str]] = {
    SHIPPED: {},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WORKS = ("training", "scoring", "decoding")
UNITS = ("tokens/s", "queries/s", "tokens/s")
SECONDS = 6.0  # seconds for each kind of work, after a first run that is not timed


def works() -> dict[str, tuple[Callable[[], Any], float]]:
    """Each kind of work, with the units of one run."""
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams
    from mta_cli.engine.lora.adapter import init_lora_weights
    from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
    from mta_cli.engine.scoring.prefix_tree import PromptTree
    from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer

    base = harness.load()
    person = harness.people(1, 8, task="taste")[0]
    prompts, task = harness.prompter(base, "taste"), harness.sample_task("taste")
    rows = harness.rows_of(prompts, person, 3)
    asked = [prompts.prompt_ids(query.input, person.items[:3]) for query in person.queries]
    labels = tuple(tuple(prompts.answer_ids(label)) for label in task.labels)
    start = init_lora_weights(base.model, "all-linear", "upper", 8, 16.0, 0)

    def train() -> None:
        harness.forget(base)
        for _ in Trainer(
            base, [GroupMember(start, rows, Schedule.from_epochs(len(rows), 1, 4, 1e-3), 0)]
        ).train_steps():
            pass

    def score() -> None:
        harness.forget(base)
        trees = [PromptTree(tuple(prompt), labels) for prompt in asked]
        completion_log_likelihoods(base, trees, [(start,)], [(tree, 0) for tree in range(len(trees))])

    once = SamplingParams(32, stop_at_repetition=False)
    return {
        "training": (train, float(sum(len(row.input_ids) for row in rows))),
        "scoring": (score, float(len(asked))),
        "decoding": (lambda: generate_answers(base, asked[:1], [()], [0], once), 32.0),
    }


def measure() -> dict[str, float]:
    """The rate of each kind of work in this process: the median of its runs."""
    rates = {}
    for name, (run, units) in works().items():
        harness.timed(run)
        seconds: list[float] = []
        while not seconds or sum(seconds) < SECONDS:
            seconds.append(harness.timed(run).seconds)
        rates[name] = units / statistics.median(seconds)
    return rates


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside the block, `count` processes compute endlessly."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(setting: Mapping[str, str]) -> dict[str, float]:
    """The rates of a new process with this setting, started like the console script."""
    env = {key: value for key, value in os.environ.items() if key not in harness.THREADING}
    line = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_load", "--inside"]
    ran = subprocess.run(line, env={**env, **setting}, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", action="store_true", help="measure in this process, and print JSON")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    if chosen.inside:
        start = CpuTimes.read()
        time.sleep(0.1)
        prepare_threads(start)
        print(json.dumps(measure()))
        return
    rows = []
    for load in chosen.loads:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        with busy(load):
            for _ in range(chosen.repeats):
                for name, setting in SETTINGS.items():
                    found[name].append(measured(setting))
        rates = {name: {w: statistics.median(run[w] for run in runs) for w in WORKS} for name, runs in found.items()}
        best = {work: max(each[work] for each in rates.values()) for work in WORKS}
        for name, each in rates.items():
            row: dict[str, Any] = {"busy processes": load, "setting": name}
            row |= {f"{work}, {unit}": each[work] for work, unit in zip(WORKS, UNITS, strict=True)}
            rows.append({**row, "least of the best": f"{min(each[work] / best[work] for work in WORKS):.0%}"})
    harness.report("load", rows, repeats=chosen.repeats, seconds=SECONDS)


if __name__ == "__main__":
    main()
