"""Trains adapters in groups and stores them: checkpoints, resumption, files and rows. Used by banks and adaptation.

This module does all writing; `engine.training.session` does the computation.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli.engine.training.session import SessionReport, SessionStarted, SessionStep, TrainingResult
from mta_cli.errors import BadInput
from mta_cli.events import Event, JobProgress, Note
from mta_cli.pipeline.executors.local import Executor, LocalExecutor
from mta_cli.pipeline.runs import library_versions
from store.records import Adapter

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import TrainingExample
    from mta_cli.engine.training.trainer import GroupMember, Schedule, TrainStep
    from mta_cli.engine.training.work import GroupWork
    from store.records import Run
    from store.registry import Registry

T = TypeVar("T")
MAX_USERS_PER_GROUP = 64  # the most users in a group


@dataclass(frozen=True)
class AdapterJob:
    """All settings that determine a trained adapter's bytes, besides the base and the rows."""

    kind: str
    label: str
    task_adapter: str | None
    rank: int
    alpha: float
    targets: str
    placement: str
    seed: int
    data_hash: str
    schedule: Schedule
    config: dict[str, Any] = field(default_factory=dict)
    display_label: str = ""

    @property
    def title(self) -> str:
        """The text for progress messages. `label` is stored, so only a stack's label may be a user's name."""
        return self.display_label or self.label

    def checkpoint_key(self, base: str) -> str:
        """A text of everything that determines the training's result, under which its checkpoint is stored."""
        return repr(
            (
                base,
                self.kind,
                self.label,
                self.task_adapter,
                self.rank,
                self.alpha,
                self.targets,
                self.placement,
                self.seed,
                self.data_hash,
                self.schedule,
                sorted(self.config.items()),
            )
        )


@dataclass(frozen=True)
class AdapterTraining:
    """One adapter to train: the job, its examples, and the run that its steps belong to.

    `stack` is the trainer's input for a user's stack; without it a fresh LoRA of the job is trained.
    """

    job: AdapterJob
    examples: Sequence[TrainingExample]
    run: Run | None = None
    stack: GroupMember | None = None

    def member(self, base: LoadedBase) -> GroupMember:
        """The trainer's input: `stack` if given, else a fresh LoRA with the examples."""
        if self.stack is not None:
            return self.stack
        from mta_cli.engine.lora.adapter import init_lora_weights
        from mta_cli.engine.training.trainer import GroupMember

        job = self.job
        start = init_lora_weights(base.model, job.targets, job.placement, job.rank, job.alpha, job.seed)
        return GroupMember(start, self.examples, job.schedule, job.seed)


OnTrained = Callable[[list[Adapter | str], TrainingResult], Iterator[Event]]


@dataclass(frozen=True)
class TrainingGroup:
    """Trainings that run together: all have the same modules, rank, alpha and placement.

    `on_trained` is called with the stored adapters, or with the error of each failed member. It stores dependent rows
    and yields events. With `heldout` examples for each member, losses are measured before and after.
    """

    trainings: Sequence[AdapterTraining]
    on_trained: OnTrained
    heldout: tuple[Sequence[TrainingExample], ...] | None = None

    @property
    def jobs(self) -> list[AdapterJob]:
        """The job of every member."""
        return [training.job for training in self.trainings]

    @property
    def steps(self) -> int:
        """The sum of all members' steps."""
        return sum(job.schedule.steps for job in self.jobs)


def max_group_size(base: LoadedBase, job: AdapterJob, frozen_bytes: int = 0) -> int:
    """The largest number of adapters like this one that can train together within the base's limits.

    Each has frozen LoRAs of at most `frozen_bytes` below it.
    """
    from mta_cli.engine.lora.adapter import find_target_modules

    paths, _ = find_target_modules(base.model, job.targets, job.placement)
    modules = [base.model.get_submodule(path) for path in paths]
    widths = sum(int(module.out_features) + int(module.in_features) for module in modules)
    bytes_each = frozen_bytes + 4 * 4 * job.rank * widths  # value, gradient and two moments
    return max(1, min(MAX_USERS_PER_GROUP, base.limits.group_bytes // max(1, bytes_each)))


def group_key(base: LoadedBase, jobs: Sequence[AdapterJob]) -> str:
    """The text under which a group's checkpoint is stored."""
    keys = "\n".join(job.checkpoint_key(base.fingerprint) for job in jobs)
    return jobs[0].checkpoint_key(base.fingerprint) if len(jobs) == 1 else hashlib.sha256(keys.encode()).hexdigest()


def pair_with_adapters(
    whose: Sequence[T], trainings: Sequence[AdapterTraining], results: Sequence[Adapter | str]
) -> list[tuple[T, Adapter]]:
    """Pairs of an entry of `whose` and its trained adapter. Raises BadInput if a training failed."""
    paired = []
    for one, training, result in zip(whose, trainings, results, strict=True):
        if isinstance(result, str):
            raise BadInput(f"{training.job.title}: {result}", hint="lower the learning rate")
        paired.append((one, result))
    return paired


def format_losses(adapter: Adapter) -> str:
    """The loss before and after the training, as text."""
    return f"{adapter.loss_first:.3f} → {adapter.loss_last:.3f}" if adapter.loss_first is not None else "unknown"


def train_groups(
    reg: Registry,
    base: LoadedBase,
    groups: Iterable[TrainingGroup],
    done: int = 0,
    executor: Executor | None = None,
    below: LoraWeights | None = None,
) -> Iterator[Event]:
    """Train groups with `executor`, or one after another on `base`, and store the result of each.

    `below` is the task adapter below the trained adapters; it must already be merged into `base`. `done` is the
    number of steps already counted in the progress. A checkpoint of each group is kept while it runs, and also when the
    generator is closed. It is deleted when the group's adapters are stored.
    """
    executor = executor if executor is not None else LocalExecutor(base)
    recorders = dict[int, _SessionRecorder]()  # groups in training, by number

    def works() -> Iterator[GroupWork]:
        numbers = itertools.count()
        for group in groups:
            recorders[number := next(numbers)] = _SessionRecorder(reg, base, group)
            del group  # free its examples and frozen LoRAs before the next group's are made
            yield recorders[number].take_work()

    try:
        for number, report in executor.run(works(), below):
            recorder = recorders[number]
            others = sum(one.steps_counted for one in recorders.values() if one is not recorder)
            yield from recorder.record_report(report, done + others)
            if isinstance(report, TrainingResult):
                done += recorders.pop(number).steps_counted
            del recorder
    except GeneratorExit:  # stopped between two steps: save the progress
        for number, recorder in recorders.items():
            recorder.save_checkpoint(executor.checkpoint(number))
        raise


class _SessionRecorder:
    """Records a group's training: steps, checkpoints, and adapters."""

    def __init__(self, reg: Registry, base: LoadedBase, group: TrainingGroup) -> None:
        self._base, self._steps_taken = base, 0
        self._reg, self._group, self._key = reg, group, group_key(base, group.jobs)
        self._settled = False

    def take_work(self) -> GroupWork:
        """The work for an executor. It is handed over, so that only the executor keeps the members' factors."""
        from mta_cli.engine.training.work import GroupWork

        members = tuple(one.member(self._base) for one in self._group.trainings)
        return GroupWork(members, self._reg.files.read_checkpoint(self._key), self._group.heldout)

    @property
    def steps_counted(self) -> int:
        """The steps for the progress: all steps of a finished group, even if some members failed."""
        return self._group.steps if self._settled else self._steps_taken

    def record_report(self, report: SessionReport, done: int) -> Iterator[Event]:
        """Store the content of a report and yield its events. `done`: the steps of other groups."""
        if isinstance(report, SessionStarted):
            self._steps_taken = report.steps_taken
            if not report.checkpoint_matches:
                self._reg.files.remove_checkpoint(self._key)
            if report.steps_taken:
                title = _title(self._group.jobs[0], len(self._group.jobs))
                yield Note(f"{title}: goes on from step {report.steps_taken} of {self._group.steps}.")
        elif isinstance(report, SessionStep):
            self._record_step(report)
            if report.steps:
                yield self._step(report.steps, done + self._steps_taken)
        else:
            yield from self._store_adapters(report)

    def _record_step(self, report: SessionStep) -> None:
        self._steps_taken += len(report.steps)
        with self._reg.transaction():
            for i, step in report.steps.items():
                one = self._group.trainings[i]
                if one.run is not None:
                    self._reg.runs.record_step(
                        one.run.id, one.job.label, step.step, step.loss, step.tokens, step.seconds
                    )
        if report.checkpoint is not None:
            self._reg.files.write_checkpoint(self._key, report.checkpoint)

    def save_checkpoint(self, state: bytes | None) -> None:
        """Store a checkpoint of an unfinished training."""
        if state is not None and not self._settled:
            self._reg.files.write_checkpoint(self._key, state)

    def _store_adapters(self, trained: TrainingResult) -> Iterator[Event]:
        """Store the adapters and call the group's `on_trained`.

        All members are stored in one transaction, because the rest of a partly stored group would train with other
        members and give other bytes.
        """
        self._settled = True
        reg = self._reg
        results: list[Adapter | str] = [trained.failures.get(i, "") for i in range(len(self._group.jobs))]
        for i, weights in trained.weights.items():
            results[i] = _write_adapter(reg, self._base, self._group.jobs[i], weights, trained, i)
        with reg.files.consume_checkpoint(self._key), reg.transaction():
            for one in results:
                if isinstance(one, Adapter):
                    reg.adapters.add_adapter(one)
            told = list(self._group.on_trained(results, trained))
        yield from told

    def _step(self, steps: dict[int, TrainStep], done: int) -> JobProgress:
        """The progress of a group's step: the mean loss of the members that took one."""
        loss = sum(step.loss for step in steps.values()) / len(steps)
        tokens, seconds = sum(s.tokens for s in steps.values()), sum(s.seconds for s in steps.values())
        return JobProgress(_title(self._group.jobs[next(iter(steps))], len(steps)), done, loss, tokens, seconds)


def _title(job: AdapterJob, members: int) -> str:
    return job.title if members == 1 else f"{job.title} and {members - 1} more"


def _write_adapter(
    reg: Registry, base: LoadedBase, job: AdapterJob, weights: LoraWeights, trained: TrainingResult, member: int
) -> Adapter:
    """Write an adapter's file and return its row, which is not added yet."""
    taken = trained.steps[member]
    header: dict[str, Any] = {
        "kind": job.kind,
        "base": base.fingerprint,
        "task_adapter": job.task_adapter,
        "rank": job.rank,
        "alpha": job.alpha,
        "seed": job.seed,
        "data_hash": job.data_hash,
    }
    digest, size = reg.adapters.write_file(weights.to_bytes(header))
    return Adapter(
        **header,
        digest=digest,
        targets=job.targets,
        placement=str(weights.placement),
        dtype="float16",
        bytes=size,
        config={**job.config, **asdict(job.schedule), "compute": base.number_format},
        versions=library_versions(),
        tokens=sum(s.tokens for s in taken),
        seconds=sum(s.seconds for s in taken),
        loss_first=trained.first_losses[member],
        loss_last=trained.last_losses[member],
    )
