"""Training adapters of the store, many at once: checkpoints, resumption, files and rows. For banks and adaptation.

All that is written is written here; what computes is a `Lesson`. Knows neither how anchors are chosen nor what a recipe
is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli.errors import BadInput
from mta_cli.events import Event, Note, Step
from mta_cli.pipeline.bank.lora_xs_basis import Basis
from mta_cli.pipeline.training.session import Begun, Lesson, Report, Stepped, Trained
from mta_cli.pipeline.training.side_by_side import Crew
from store.records import Adapter, User

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import Taught
    from mta_cli.engine.training.trainer import Schedule, TrainStep
    from store.records import Run
    from store.registry import Registry

T = TypeVar("T")
CORE = "core"  # the kind of a job that trains numbers on its group's basis
LEFT = "the person left meanwhile, and nothing of it was kept"
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
    schedule: Schedule
    config: dict[str, Any] = field(default_factory=dict)
    shown: str = ""
    pull: float = 0.0

    @property
    def title(self) -> str:
        """What a person watching reads; `label` is what the store keeps, and holds no anchor's name."""
        return self.shown or self.label

    def checkpoint_key(self, base: str) -> str:
        """Names the training whose checkpoint may be resumed."""
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
                self.pull,
                sorted(self.config.items()),
            )
        )


@dataclass(frozen=True)
class Training:
    """One adapter to train: the job, its rows, the frozen parts underneath, and the run that its steps belong to.

    `people` are those whose words it learns from: it ends as failed, with `LEFT`, when one of them is forgotten or,
    where it `serves` others, takes their consent back.
    """

    job: AdapterJob
    rows: Sequence[Taught]
    under: tuple[LoraWeights, ...] = ()
    run: Run | None = None
    people: tuple[User, ...] = ()
    serves: bool = False


Settle = Callable[[list[Adapter | str], Trained], Iterator[Event]]
Measure = Callable[["LoadedBase", "Sequence[tuple[LoraWeights, ...]]"], list[Any]]


@dataclass(frozen=True)
class Group:
    """Trainings that run together: all have the same modules, rank, alpha and placement, or are cores on `basis`.

    `settle` is given their rows, or why one failed, once these are stored: it writes what rests on them, and tells.
    `measure` is given a base and each member's new parts, none before the training, and returns a finding for each.
    """

    trainings: Sequence[Training]
    settle: Settle
    measure: Measure | None = None
    basis: Basis | None = None

    @property
    def jobs(self) -> list[AdapterJob]:
        """Every member's job."""
        return [training.job for training in self.trainings]

    @property
    def steps(self) -> int:
        """The steps of all members together."""
        return sum(job.schedule.steps for job in self.jobs)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a training gives."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "safetensors")}


def group_size(base: LoadedBase, job: AdapterJob, many: int, devices: int = 1) -> int:
    """How many of `many` adapters like this one train together: within `GROUP_BYTES`, and no device's share more.

    The numbers of a core are so few that `TOGETHER` alone bounds them.
    """
    from mta_cli.engine.lora.adapter import find_targets

    share = math.ceil(many / devices)
    if job.kind == CORE:
        return max(1, min(TOGETHER, share))
    paths, _ = find_targets(base.model, job.targets, job.placement)
    shapes = [base.model.get_submodule(path).weight.shape for path in paths]
    bytes_each: int = 4 * 4 * job.rank * sum(out + inputs for out, inputs in shapes)  # value, gradient and two moments
    return max(1, min(TOGETHER, GROUP_BYTES // bytes_each, share))


def group_key(base: LoadedBase, jobs: Sequence[AdapterJob]) -> str:
    """Names the common checkpoint of a group."""
    keys = "\n".join(job.checkpoint_key(base.fingerprint) for job in jobs)
    return jobs[0].checkpoint_key(base.fingerprint) if len(jobs) == 1 else hashlib.sha256(keys.encode()).hexdigest()


def those_made(
    whose: Sequence[T], trainings: Sequence[Training], results: Sequence[Adapter | str]
) -> list[tuple[T, Adapter]]:
    """Each of `whose` with their adapter, without those whose people left. Raises BadInput when one failed."""
    for training, result in zip(trainings, results, strict=True):
        if isinstance(result, str) and result != LEFT:
            raise BadInput(f"{training.job.title}: {result}", hint="lower the learning rate")
    return [(one, result) for one, result in zip(whose, results, strict=True) if isinstance(result, Adapter)]


def losses_of(adapter: Adapter) -> str:
    """The loss before and after its training."""
    return f"{adapter.loss_first:.3f} → {adapter.loss_last:.3f}" if adapter.loss_first is not None else "unknown"


def train_groups(reg: Registry, bases: Sequence[LoadedBase], groups: Iterable[Group], done: int = 0) -> Iterator[Event]:
    """Train, store and settle groups, one at a time on each of `bases`, which are the same base on several devices.

    Progress counts on from `done`. A checkpoint of each group is kept while it runs, also when the generator is closed,
    and is gone when its adapters are stored. With several bases each group runs in a thread; when one raises, so does
    this, after the others have finished their step and their checkpoints are written.
    """
    if len(bases) > 1:
        yield from _on_many(reg, bases, iter(groups), done)
        return
    for group in groups:
        yield from _on_one(_Course(reg, bases[0], group), done)
        done += group.steps


def _on_one(course: _Course, done: int) -> Iterator[Event]:
    try:
        for report in course.lesson.reports():
            yield from course.tell(report, done)
    except GeneratorExit:  # stopped between two steps: nothing of this training is lost
        course.keep()
        raise


def _on_many(reg: Registry, bases: Sequence[LoadedBase], groups: Iterator[Group], done: int) -> Iterator[Event]:
    crew: Crew[Report] = Crew(len(bases))
    courses: dict[int, _Course] = {}
    numbers = count()

    def begin(base: LoadedBase) -> None:
        if (group := next(groups, None)) is not None:
            number = next(numbers)
            courses[number] = _Course(reg, base, group)
            crew.start(number, courses[number].lesson.reports())

    try:
        for base in bases:
            begin(base)
        for number, report in crew.reports():
            course = courses[number]
            yield from course.tell(report, done + sum(c.taken for c in courses.values() if c is not course))
            if isinstance(report, Trained):
                done += course.taken
                del courses[number]
                begin(course.base)
    except BaseException:
        for number, report in crew.stop():
            courses[number].write(report)
        for number, course in courses.items():
            if number not in crew.failed:
                course.keep()
        raise


class _Course:
    """A group under way, and all that is written of it. `taken`: how many of its steps are done with."""

    def __init__(self, reg: Registry, base: LoadedBase, group: Group) -> None:
        self.base, self.taken = base, 0
        self._reg, self._group, self._key = reg, group, group_key(base, group.jobs)
        self._settled, self._left = False, set[int]()
        self.lesson = Lesson(base, group, reg.files.read_partial(self._key))

    def tell(self, report: Report, others: int) -> Iterator[Event]:
        """Store what a report brings, and say so; `others`: how many steps other groups are done with."""
        self.write(report)
        if isinstance(report, Trained):
            yield from self._settle(report)
        elif isinstance(report, Stepped) and report.steps:
            yield self._step(report.steps, others + self.taken)
        elif isinstance(report, Begun) and report.taken:
            title = _title(self._group.jobs[0], len(self._group.jobs))
            yield Note(f"{title}: goes on from step {report.taken} of {self._group.steps}.")

    def write(self, report: Report) -> None:
        """Store what a report from the middle of the training brings."""
        if isinstance(report, Begun):
            self.taken = report.taken
            if not report.fits:
                self._reg.files.drop_partial(self._key)
        elif isinstance(report, Stepped):
            self.taken += len(report.steps)
            with self._reg.transaction():
                anew = self._part()
                for i, step in report.steps.items():
                    one = self._group.trainings[i]
                    if one.run is not None and i not in self._left:
                        self._reg.runs.step(one.run.id, one.job.label, step.step, step.loss, step.tokens, step.seconds)
            if report.state is not None and not anew:
                self._reg.files.write_partial(self._key, report.state)

    def keep(self) -> None:
        """Store a checkpoint of a training that has begun and is not settled."""
        if self._settled:
            return
        self._part()
        if (state := self.lesson.state()) is not None and len(self._left) < len(self._group.trainings):
            self._reg.files.write_partial(self._key, state)

    def _part(self) -> bool:
        """End the trainings of people who left, and drop the checkpoint that holds them; whether there are new ones.

        What a training gave until its next step goes with it: only what is written after that is kept.
        """
        there = self._reg.users.there(user for one in self._group.trainings for user in one.people)
        gone = {
            i
            for i, one in enumerate(self._group.trainings)
            if not all(user.id in there and (there[user.id] or not one.serves) for user in one.people)
        }
        anew = gone - self._left
        self._left |= gone
        for i in anew:
            self.lesson.leave(i, LEFT)
        if anew:
            self._reg.files.drop_partial(self._key)
        return bool(anew)

    def _settle(self, trained: Trained) -> Iterator[Event]:
        """Store the adapters, and do what the group wants done with them; a core's numbers are stored by `settle`.

        All of a group at once: those who were left of half a group would train in other company, to other bytes.
        """
        self.taken, self._settled = self._group.steps, True
        reg, basis = self._reg, self._group.basis
        results: list[Adapter | str] = [trained.failed.get(i, "") for i in range(len(self._group.jobs))]
        self._part()
        for i, weights in trained.weights.items():
            job = self._group.jobs[i]
            if i not in self._left:
                results[i] = basis.adapter if basis is not None else _written(reg, self.base, job, weights, trained, i)
        with reg.files.spending(self._key), reg.transaction():
            self._part()
            made = [(i, one) for i, one in enumerate(results) if basis is None and isinstance(one, Adapter)]
            for i, adapter in made:
                if i not in self._left:
                    reg.adapters.add(adapter)
            for i, adapter in made:  # when the others' rows are there, for two may have the same file
                if i in self._left:
                    reg.adapters.abandon(adapter.digest)
            told = list(
                self._group.settle([LEFT if i in self._left else one for i, one in enumerate(results)], trained)
            )
        yield from told

    def _step(self, steps: dict[int, TrainStep], done: int) -> Step:
        """The progress of a group's step: the mean loss of those who took one."""
        loss = sum(step.loss for step in steps.values()) / len(steps)
        tokens, seconds = sum(s.tokens for s in steps.values()), sum(s.seconds for s in steps.values())
        return Step(_title(self._group.jobs[next(iter(steps))], len(steps)), done, loss, tokens, seconds)


def _title(job: AdapterJob, people: int) -> str:
    return job.title if people == 1 else f"{job.title} and {people - 1} more"


def _written(
    reg: Registry, base: LoadedBase, job: AdapterJob, weights: LoraWeights, trained: Trained, member: int
) -> Adapter:
    """The row of an adapter whose file is written here; it is not added yet."""
    taken = trained.taken[member]
    header = {
        "kind": job.kind,
        "base": base.fingerprint,
        "task_adapter": job.task_adapter,
        "rank": job.rank,
        "alpha": job.alpha,
        "seed": job.seed,
        "data_hash": job.data_hash,
    }
    digest, size = reg.adapters.write(weights.to_bytes(header))
    schedule = {
        "steps": job.schedule.steps,
        "learning_rate": job.schedule.learning_rate,
        "batch_size": job.schedule.batch_size,
    }
    return Adapter(
        digest=digest,
        kind=job.kind,
        base=base.fingerprint,
        task_adapter=job.task_adapter,
        rank=job.rank,
        alpha=job.alpha,
        targets=job.targets,
        placement=str(weights.placement),
        dtype="float16",
        seed=job.seed,
        data_hash=job.data_hash,
        bytes=size,
        config={**job.config, **schedule, "compute": str(base.dtype).removeprefix("torch.")},
        versions=library_versions(),
        tokens=sum(s.tokens for s in taken),
        seconds=sum(s.seconds for s in taken),
        loss_first=trained.first[member],
        loss_last=trained.last[member],
    )
