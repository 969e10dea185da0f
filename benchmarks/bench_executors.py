"""The overhead of Ray compared with this process, and the gain of more workers, for groups on a random two-layer model.

Groups are the product's, up to 64 users: 64 anchors are one group, and 512 adaptations are eight. All sides run the
same works in turn on ready workers, and must give the same bytes. Starting is timed once for each side. Two works
measure overhead without training: `nothing` is empty, and `carried` transfers the data of an adaptation's group there
and back.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness
from mta_cli.engine.work import SingleReport
from mta_cli.options import ExecutorOptions
from mta_cli.pipeline.executors.local import Executor, LocalExecutor
from mta_cli.pipeline.executors.ray_workers import RayExecutor, WorkerBase, import_ray
from mta_cli.pipeline.training.groups import MAX_USERS_PER_GROUP
from tests.tiny import make_base

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.engine.training.work import GroupWork

ANCHOR_RANK, STACK_RANK, SHOTS = 8, 2, 5


@dataclass(frozen=True)
class Carried:
    """A work that returns its own content."""

    content: Any = None

    @property
    def anchors_used(self) -> Sequence[int]:
        return ()

    def session(self, base: LoadedBase, anchors: Any) -> SingleReport[Any]:
        return SingleReport(lambda: self.content)

    def remaining(self, report: Any) -> None:
        return None


def groups(
    base: LoadedBase, users: Sequence[Sequence[TrainingRow]], rank: int, steps: int, below: tuple[LoraWeights, ...] = ()
) -> list[GroupWork]:
    """The trainings of a LoRA for each user, above `below`, in the product's groups."""
    from mta_cli.engine.lora.adapter import init_lora_weights
    from mta_cli.engine.training.trainer import GroupMember, Schedule
    from mta_cli.engine.training.work import GroupWork

    start = init_lora_weights(base.model, "all-linear", "upper", rank, 2.0 * rank, 0)
    members = [GroupMember(start, rows, Schedule(steps, 8, 2e-3), 0, below) for rows in users]
    return [
        GroupWork(tuple(members[first : first + MAX_USERS_PER_GROUP]))
        for first in range(0, len(members), MAX_USERS_PER_GROUP)
    ]


def digest(executor: Executor, works: Sequence[Any]) -> str:
    """Run the works; returns the digest of all trained factors."""
    from mta_cli.engine.training.session import TrainingResult

    found: dict[int, bytes] = {}
    for number, report in executor.run(works):
        if isinstance(report, TrainingResult):
            found[number] = b"".join(report.weights[i].to_bytes({}) for i in sorted(report.weights))
    return hashlib.sha256(b"".join(found[number] for number in sorted(found))).hexdigest()


def started(executor: Executor) -> float:
    """The seconds until a first empty work has returned."""
    return harness.timed(lambda: list(executor.run([Carried()]))).seconds


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("anchors", 64), ("adaptations", 512), ("items", 8), ("steps", 10), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    chosen = parser.parse_args()
    import torch

    from mta_cli.engine.model.load import load_base

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        from mta_cli.engine.model.checkpoint_files import fingerprint

        path = make_base(Path(folder, "base"))
        base = load_base(path, name="two layers", fingerprint=fingerprint(path), device="cpu", dtype="float32")
        rows = measured(base, path, chosen)
    harness.report("executors", rows, dtype="float32", threads_each=threads, repeats=chosen.repeats)


def measured(base: LoadedBase, path: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every job on every side, as rows of the table."""
    prompts = harness.prompter(base, "taste")
    users = [
        harness.rows_of(prompts, person, 3)
        for person in harness.people(max(chosen.anchors, chosen.adaptations), chosen.items, task="taste")
    ]
    anchors = groups(base, users[: chosen.anchors], ANCHOR_RANK, chosen.steps)
    below = anchors[0].members[0].initial_weights
    few = [rows[:SHOTS] for rows in users[: chosen.adaptations]]
    adaptations = groups(base, few, STACK_RANK, chosen.steps, (below,))
    jobs: dict[str, list[Any]] = {
        f"{chosen.anchors} anchors": list(anchors),
        f"{chosen.adaptations} adaptations": list(adaptations),
        "nothing": [Carried()] * 16,
        "carried": [Carried(work) for work in adaptations],
    }
    ray, most = import_ray(), sum(chosen.workers) * WorkerBase.of(base, path).threads
    begun = time.perf_counter()
    ray.init("local", num_cpus=most, include_dashboard=False, log_to_driver=False, logging_level="error")
    rows = [{"job": "start", "side": "a cluster on this machine", "seconds": time.perf_counter() - begun}]
    given, sides = WorkerBase.of(base, path), dict[str, Executor]({"local": LocalExecutor(base)})
    for count in chosen.workers:
        executor = RayExecutor(given, ExecutorOptions(executor="ray", workers=count))
        sides[f"{count} workers"] = executor
        rows.append({"job": "start", "side": f"{count} workers, the first ready", "seconds": started(executor)})
    try:
        for job, works in jobs.items():
            rows += compared(job, works, sides, base, chosen.repeats)
    finally:
        ray.shutdown()
    return rows


def compared(
    job: str, works: Sequence[Any], sides: dict[str, Executor], base: LoadedBase, repeats: int
) -> list[dict[str, Any]]:
    """A job on all sides in turn, each without cached states of an earlier run: workers drop theirs with the adapter.

    Raises ValueError if results are not byte-equal.
    """

    def run(executor: Executor) -> str:
        harness.forget(base)
        return digest(executor, works)

    asked: dict[str, Callable[[], str]] = {name: partial(run, executor) for name, executor in sides.items()}
    runs = harness.interleave(asked, repeats)
    if len({one.value for timed in runs.values() for one in timed}) > 1:
        raise ValueError(f"{job}: the sides trained different bytes")
    local = harness.median_seconds(runs["local"])
    return [
        {
            "job": job,
            "side": name,
            "groups": len(works),
            "bytes a group": len(pickle.dumps(works[0])),
            "seconds": harness.median_seconds(timed),
            "seconds a group": harness.median_seconds(timed) / len(works),
            **({} if isinstance(works[0], Carried) else {"speed-up": local / harness.median_seconds(timed)}),
        }
        for name, timed in runs.items()
    ]


if __name__ == "__main__":
    main()
