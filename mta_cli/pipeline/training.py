"""Training adapters of the store, many at once: checkpoints, resumption, files and rows. For banks and adaptation.

Knows neither how anchors are chosen nor what a recipe is.
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.events import Event, Note, Step
from store.models import Adapter

if TYPE_CHECKING:
    from mta_cli.engine.base import LoadedBase
    from mta_cli.engine.lora import LoraWeights
    from mta_cli.engine.prompts import Row
    from mta_cli.engine.train import Schedule, Trainer, TrainStep
    from store.models import Run
    from store.registry import Registry

CHECKPOINT_SECONDS = 15.0
CHECKPOINT_SHARE = 10  # a checkpoint comes no sooner than so many times the time that the last one took
PROBE = 64  # about as many rows, evenly taken, on which the loss is measured before and after
TOGETHER = 64  # people in a group at most
GROUP_BYTES = 1 << 30  # for factors, gradients and moments of a group


@dataclass(frozen=True)
class AdapterJob:
    """What to train and how: everything that decides the bytes of the adapter, besides the base and the rows."""

    kind: str
    label: str
    task_adapter: str | None
    rank: int
    alpha: float
    targets: str
    placement: str
    seed: int
    data_hash: str
    schedule: "Schedule"
    config: dict[str, Any] = field(default_factory=dict)
    shown: str = ""

    @property
    def title(self) -> str:
        """What a person watching reads; `label` is what the store keeps, and holds no anchor's name."""
        return self.shown or self.label

    def checkpoint_key(self, base: str) -> str:
        """Names the training whose checkpoint may be resumed."""
        return repr((base, self.kind, self.label, self.task_adapter, self.rank, self.alpha, self.targets,
                     self.placement, self.seed, self.data_hash, self.schedule,
                     sorted(self.config.items())))  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One adapter to train: the job, its rows, the frozen parts underneath, and the run that its steps belong to."""

    job: AdapterJob
    rows: "Sequence[Row]"
    under: "tuple[LoraWeights, ...]" = ()
    run: "Run | None" = None


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a training gives."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "safetensors")}


def group_size(base: "LoadedBase", job: AdapterJob) -> int:
    """How many adapters like this one train together within `GROUP_BYTES`."""
    from mta_cli.engine.lora import find_targets

    paths, _ = find_targets(base.model, job.targets, job.placement)
    shapes = [base.model.get_submodule(path).weight.shape for path in paths]
    bytes_each: int = 4 * 4 * job.rank * sum(out + inputs for out, inputs in shapes)  # value, gradient and two moments
    return max(1, min(TOGETHER, GROUP_BYTES // bytes_each))


def group_key(base: "LoadedBase", jobs: Sequence[AdapterJob]) -> str:
    """Names the common checkpoint of a group."""
    keys = "\n".join(job.checkpoint_key(base.fingerprint) for job in jobs)
    return jobs[0].checkpoint_key(base.fingerprint) if len(jobs) == 1 else hashlib.sha256(keys.encode()).hexdigest()


def train_adapters(
    reg: "Registry", base: "LoadedBase", trainings: Sequence[Training], done: int = 0
) -> Generator[Event, None, list[Adapter | str]]:
    """Train and store one group of adapters; `return`s their rows, or why one failed. Progress counts on from `done`.

    All have the same modules, rank, alpha and placement. A checkpoint of the group is kept while it runs, also when the
    generator is closed, and is gone when all are stored.
    """
    from mta_cli.engine.lora import initial
    from mta_cli.engine.score import mean_losses
    from mta_cli.engine.train import Member, Trainer

    jobs = [training.job for training in trainings]
    key = group_key(base, jobs)
    members = [
        Member(
            initial(base.model, j.targets, j.placement, j.rank, j.alpha, j.seed), t.rows, j.schedule, j.seed, t.under
        )
        for j, t in zip(jobs, trainings, strict=True)
    ]
    probes = [t.rows[:: max(1, len(t.rows) // PROBE)] for t in trainings]
    first = mean_losses(base, [(probe, t.under) for probe, t in zip(probes, trainings, strict=True)])
    trainer = Trainer(base, members)
    yield from _resume(reg, trainer, key, jobs)
    yield from _run_steps(reg, trainer, key, trainings, done)
    stored = {i: trainer.weights(i).stored() for i in range(len(jobs)) if i not in trainer.failed}
    last = mean_losses(base, [(probes[i], (*trainings[i].under, weights)) for i, weights in stored.items()])
    results: list[Adapter | str] = [trainer.failed.get(i, "") for i in range(len(jobs))]
    for (i, weights), loss in zip(stored.items(), last, strict=True):
        results[i] = _store(reg, base, jobs[i], weights, trainer.taken[i], first[i], loss)
    reg.files.drop_partial(key)
    return results


def _store(
    reg: "Registry",
    base: "LoadedBase",
    job: AdapterJob,
    weights: "LoraWeights",
    taken: "Sequence[TrainStep]",
    first: float | None,
    last: float | None,
) -> Adapter:
    header = {"kind": job.kind, "base": base.fingerprint, "task_adapter": job.task_adapter, "rank": job.rank,
              "alpha": job.alpha, "seed": job.seed, "data_hash": job.data_hash}  # fmt: skip
    digest, size = reg.files.write(weights.to_bytes(header))
    schedule = {"steps": job.schedule.steps, "learning_rate": job.schedule.learning_rate,
                "batch_size": job.schedule.batch_size}  # fmt: skip
    adapter = Adapter(
        digest=digest, kind=job.kind, base=base.fingerprint, task_adapter=job.task_adapter, rank=job.rank,
        alpha=job.alpha, targets=job.targets, placement=str(weights.placement), dtype="float16", seed=job.seed,
        data_hash=job.data_hash, bytes=size,
        config={**job.config, **schedule, "compute": str(base.dtype).removeprefix("torch.")},
        versions=library_versions(), tokens=sum(s.tokens for s in taken), seconds=sum(s.seconds for s in taken),
        loss_first=first, loss_last=last,
    )  # fmt: skip
    reg.adapters.add(adapter)
    return adapter


def _run_steps(
    reg: "Registry", trainer: "Trainer", key: str, trainings: Sequence[Training], done: int
) -> Iterator[Event]:
    saved, pause = time.monotonic(), CHECKPOINT_SECONDS
    done += sum(len(taken) for taken in trainer.taken)
    try:
        for steps in trainer.steps():
            done += len(steps)
            with reg.transaction():
                for i, step in steps.items():
                    if (run := trainings[i].run) is not None:
                        reg.runs.step(run.id, trainings[i].job.label, step.step, step.loss, step.tokens, step.seconds)
            if (now := time.monotonic()) - saved > pause:
                reg.files.write_partial(key, trainer.state())
                saved = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (saved - now))
            if steps:
                yield _step(trainings, steps, done)
    except GeneratorExit:  # stopped between two steps: nothing of this training is lost
        reg.files.write_partial(key, trainer.state())
        raise


def _step(trainings: Sequence[Training], steps: "dict[int, TrainStep]", done: int) -> Step:
    """The progress of a group's step: the mean loss of those who took one."""
    title = trainings[next(iter(steps))].job.title
    if len(steps) > 1:
        title = f"{title} and {len(steps) - 1} more"
    loss = sum(step.loss for step in steps.values()) / len(steps)
    tokens, seconds = sum(s.tokens for s in steps.values()), sum(s.seconds for s in steps.values())
    return Step(title, done, loss, tokens, seconds)


def _resume(reg: "Registry", trainer: "Trainer", key: str, jobs: Sequence[AdapterJob]) -> Iterator[Event]:
    state = reg.files.read_partial(key)
    if state is None:
        return
    try:
        trainer.resume(state)
    except (ValueError, KeyError):
        reg.files.drop_partial(key)
        return
    steps, of = sum(len(taken) for taken in trainer.taken), sum(job.schedule.steps for job in jobs)
    if steps:
        title = jobs[0].title if len(jobs) == 1 else f"{jobs[0].title} and {len(jobs) - 1} more"
        yield Note(f"{title}: goes on from step {steps} of {of}.")
