"""Chooses sizes that fit into the time: users and items of the bank, training passes, and measured users.

`measure_row_rate` runs training steps on the file's own prompts. Everything else is pure functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from mta_cli.events import PlanLine
from mta_cli.options import MAX_OTHERS, AdaptOptions, BankOptions
from mta_cli.pipeline.bank.memory_weights import MAX_GUESSED_ITEMS
from mta_cli.pipeline.bank_sizes import BY_THE_DATA, choose_sizes
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import TrainingRow
    from mta_cli.engine.text.tasks import Task
    from mta_cli.engine.training.trainer import Schedule
    from store.records import NewItem

BATCH_SIZE = 4
"""Rows per step; small, because short histories give few steps."""
TIMED_STEPS = 3  # training steps that measure the rate
OVERHEAD_SECONDS = 10.0  # loading models, embedding items
# Costs relative to a row of the task adapter's training, measured with the default base on support replies and labelled
# messages: a row of an anchor's and of a stack's training, and a row of evidence for the fusion, alone and per anchor
ANCHOR_ROW, STACK_ROW, EVIDENCE_ROW, ANCHOR_EVIDENCE = 0.8, 0.5, 0.6, 0.2
MEMORY_ROW = 1.1  # an item on which the label memory's weights are fitted
ANSWER_ROWS = 3.0  # a question's answers at all steps, and its losses before and after the stack's training
WHOSE_ROW = 0.35  # a question's likelihood under one other user's model, at both personal steps
SHOWN_TEXT_ROWS = 30.0  # all texts that are generated for the examples
BANK_USERS = (1000, 300, 100, 48, 24, 12, 6)  # numbers of users in the bank to choose from
ITEMS = (200, 100, 50, 25, 12, 8)  # numbers of latest items of a user to choose from
PASSES = ((2, 2, True), (1, 2, True), (1, 1, True), (1, 1, False))
"""Passes of the task adapter and of the anchors, and whether memory weights are fitted on held-out users; best first.
"""
MEASURING_SHARE = 0.4
"""The share of the time that is reserved for users' models and answers, if there are enough users."""
LOGLIK_SD = 0.15
"""The assumed standard deviation over questions of the difference between personal and common model, in nats.

Observed: .05 to .3.
"""


@dataclass(frozen=True)
class QuickSizes:
    """The sizes of training and measurement. `bank_users`: the number of users in the bank; None means all."""

    anchors: int
    min_items: int
    max_items: int  # also the maximum number of shots
    task_epochs: int
    epochs: int
    held_out_weights: bool
    measured_users: int
    bank_users: int | None = None

    def bank_options(self, options: BankOptions) -> BankOptions:
        """The options of the bank, with these sizes."""
        return replace(
            options,
            anchors=self.anchors,
            min_items=self.min_items,
            max_items=self.max_items,
            task_epochs=self.task_epochs,
            epochs=self.epochs,
            held_out_weights=self.held_out_weights,
            batch_size=BATCH_SIZE,
        )


@dataclass(frozen=True)
class Workload:
    """The inputs of a plan. `held` has the number of items of each user who may contribute to the bank.

    `queries` has the number of queries of every user; `labels` says whether the task has labels.
    """

    held: tuple[int, ...]
    queries: tuple[int, ...]
    labels: bool
    adapt: AdaptOptions = field(default_factory=AdaptOptions)

    @property
    def queries_per_user(self) -> float:
        """The mean number of queries, over users with queries."""
        return _mean([count for count in self.queries if count])

    def shots(self, most: int) -> list[int]:
        """The number of shots of each user: as in the options, limited by `most` and by the user's items."""
        return [min(self.adapt.shots, most, count) for count in self.held]

    def mean_trained_rows(self, most: int) -> float:
        """The number of rows in all training steps of a stack, as a mean over users."""
        schedules = [(shots, self.stack_schedule(shots)) for shots in self.shots(most)]
        return _mean([own.steps * min(shots, own.batch_size) for shots, own in schedules])

    def stack_schedule(self, shots: int) -> Schedule:
        """The schedule of a stack with this many shots."""
        from mta_cli.engine.methods.stacks import stack_schedule

        return stack_schedule(shots, self.adapt, self.labels)


def _mean(counts: Sequence[int]) -> float:
    return sum(counts) / max(len(counts), 1)


@dataclass(frozen=True)
class QuickPlan:
    """The chosen sizes, the seconds that the job is expected to take, and the plan's lines."""

    sizes: QuickSizes
    seconds: float
    lines: tuple[PlanLine, ...]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The plan from the document that `dataclasses.asdict` made."""
        lines = tuple(PlanLine(**line) for line in document["lines"])
        return cls(QuickSizes(**document["sizes"]), document["seconds"], lines)


def make_plan(work: Workload, options: BankOptions, rows_per_second: float, minutes: float) -> QuickPlan:
    """The best sizes that fit into `minutes`, then as many measured users as fit; the smallest plan if nothing fits."""
    from mta_cli.engine.evaluation.ladder import MIN_UNITS

    rows, sizes, fitting = 60 * minutes * rows_per_second, None, 0
    for sizes in _candidates(work, options):
        kept = int(MEASURING_SHARE * rows / _rows_per_measured_user(work, sizes))
        wanted = min(sizes.measured_users, max(MIN_UNITS["users"], kept))
        bank = estimate_seconds(work, replace(sizes, measured_users=0), rows_per_second) * rows_per_second
        fitting = _fitting_users(work, sizes, rows - bank)
        if fitting >= wanted:
            break
    assert sizes is not None
    sizes = replace(sizes, measured_users=min(sizes.measured_users, max(MIN_UNITS["users"], fitting)))
    seconds = estimate_seconds(work, sizes, rows_per_second)
    return QuickPlan(sizes, seconds, _plan_lines(work, options, sizes, seconds, rows_per_second, minutes))


def estimate_seconds(work: Workload, sizes: QuickSizes, rows_per_second: float) -> float:
    """The seconds that loading, the bank, the users' models and the answers are expected to take."""
    held = sorted(work.held, reverse=True)[: sizes.bank_users]
    items = [min(count, sizes.max_items) for count in held if count >= sizes.min_items]
    pooled = sum(items) * sizes.task_epochs * (2 if work.labels and sizes.held_out_weights else 1)
    anchors = sum(sorted(items, reverse=True)[: sizes.anchors]) * sizes.epochs * ANCHOR_ROW
    memory = min(sum(items), MAX_GUESSED_ITEMS) * MEMORY_ROW if work.labels else 0.0
    personal = sizes.measured_users * _rows_per_measured_user(work, sizes)
    shown = 0.0 if work.labels else SHOWN_TEXT_ROWS
    return OVERHEAD_SECONDS + (pooled + anchors + memory + personal + shown) / rows_per_second


def _fitting_users(work: Workload, sizes: QuickSizes, rows: float) -> int:
    """The number of users that can be measured in the time of `rows` rows. The cost of each grows with their number."""
    cost = [_rows_per_measured_user(work, replace(sizes, measured_users=n)) for n in range(1, MAX_OTHERS + 2)]
    return max(sum(n * each <= rows for n, each in enumerate(cost, 1)), int(rows / cost[-1]))


def _rows_per_measured_user(work: Workload, sizes: QuickSizes) -> float:
    """The rows per measured user: evidence for the fusion, the stack's training, and answers scored at every step."""
    shots, trained = _mean(work.shots(sizes.max_items)), work.mean_trained_rows(sizes.max_items)
    own = shots * (EVIDENCE_ROW + ANCHOR_EVIDENCE * sizes.anchors) + trained * STACK_ROW
    others = min(MAX_OTHERS, max(0, sizes.measured_users - 1))
    return own + work.queries_per_user * (ANSWER_ROWS + others * WHOSE_ROW)


def _candidates(work: Workload, options: BankOptions) -> Iterator[QuickSizes]:
    """Sizes in descending order: fewer passes, then fewer items of each user, then fewer users.

    All users who are not anchors are measured.
    """
    asked = sum(count > 0 for count in work.queries)
    # the numbers of passes in `PASSES`, unless the settings have others than the defaults
    of_task, of_anchors = _changed(options, "task_epochs"), _changed(options, "epochs")
    passes = dict.fromkeys((of_task or first, of_anchors or second, weighed) for first, second, weighed in PASSES)
    for users in (None, *(count for count in BANK_USERS if count < len(work.held))):
        held = sorted(work.held, reverse=True)[:users]
        chosen = choose_sizes(held, options).options
        measured = asked - chosen.anchor_count if asked > chosen.anchor_count else asked
        longest = max(held, default=0)
        for items in (count for n, count in enumerate(ITEMS) if n == 0 or count < longest):
            for task_epochs, epochs, weighed in passes:
                yield QuickSizes(
                    chosen.anchor_count, chosen.anchor_items, items, task_epochs, epochs, weighed, measured, users
                )


def _changed(options: BankOptions, name: str) -> int | None:
    value: int = getattr(options, name)
    return None if value == getattr(BankOptions, name) else value


def _plan_lines(
    work: Workload, options: BankOptions, sizes: QuickSizes, seconds: float, rows_per_second: float, minutes: float
) -> tuple[PlanLine, ...]:
    from mta_cli.engine.evaluation.statistics import planned_detectable_effect

    fits = f"what fits into {minutes:g} min"
    held = sorted(work.held, reverse=True)[: sizes.bank_users]
    asked = sum(count > 0 for count in work.queries)
    seen = "not seen" if sizes.held_out_weights else "seen"
    weighed = [PlanLine("memory", f"weights fitted on users whom the task adapter has {seen}", fits)]
    given = [_changed(options, name) is not None for name in ("task_epochs", "epochs")]
    passes_from = "settings" if all(given) else f"settings, and {fits}" if any(given) else fits
    shots = max(work.shots(sizes.max_items), default=0)
    steps = pluralise(work.stack_schedule(shots).steps, "step")
    personal = f"fusions from at most {pluralise(shots, 'item')}, stacks from the same in {steps}"
    least = planned_detectable_effect([max(1, round(work.queries_per_user))] * sizes.measured_users, LOGLIK_SD)
    power = f"a difference of {least:.3f} nats is found with 80 % probability"
    return (
        PlanLine("rate", f"{rows_per_second:.3g} rows a second", f"{TIMED_STEPS} training steps on these prompts"),
        PlanLine("bank's users", f"{len(held)} of {len(work.held)}", fits if sizes.bank_users else BY_THE_DATA),
        *choose_sizes(held, options).plan_lines,
        PlanLine("items of a user", f"the latest {sizes.max_items} at most", fits),
        PlanLine("passes", f"task adapter {sizes.task_epochs}, anchors {sizes.epochs}", passes_from),
        PlanLine("rows in a step", str(BATCH_SIZE), "short histories give few steps"),
        *(weighed if work.labels else []),
        PlanLine("users' models", personal, fits),
        PlanLine("measured users", f"{sizes.measured_users} of {asked}", f"no anchors; {fits}" if asked > 1 else ""),
        PlanLine("questions", f"about {sizes.measured_users * work.queries_per_user:.0f}, held out", BY_THE_DATA),
        PlanLine("power", power, f"assumed standard deviation: {LOGLIK_SD:g} nats"),
        PlanLine("time", f"about {seconds:.0f} s{'' if seconds <= 60 * minutes else ', for the smallest plan'}"),
    )


def sample_rows(
    base: LoadedBase, task: Task, sample: dict[str, list[NewItem]], mix: Sequence[int]
) -> list[TrainingRow]:
    """A training row for the last item of each sampled user. `mix` has, in turn, how many earlier items are shown."""
    from mta_cli.engine.text.prompts import HistoryExample, PromptBuilder

    prompter = PromptBuilder(base.tokenizer, task, base.end_ids, base.window)
    rows = []
    for items, shown in zip(sample.values(), itertools.cycle(mix)):
        *earlier, last = items
        history = [HistoryExample(one.input, one.output) for one in earlier[len(earlier) - min(shown, len(earlier)) :]]
        rows.append(prompter.training_row(last.input, last.output, history))
    return rows


def measure_row_rate(base: LoadedBase, rows: Sequence[TrainingRow], options: BankOptions) -> float:
    """The task adapter's training rows per second on this device, in the fastest of `TIMED_STEPS` steps."""
    from mta_cli.engine.lora.adapter import init_lora_weights
    from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer

    batch = [rows[n % len(rows)] for n in range(BATCH_SIZE)]
    fresh = init_lora_weights(
        base.model, options.targets, options.task_placement, options.task_rank, 2.0 * options.task_rank, 0
    )
    schedule = Schedule(TIMED_STEPS, BATCH_SIZE, options.task_learning_rate)
    trainer = Trainer(base, [GroupMember(fresh, batch, schedule, 0)])
    seconds = [step.seconds for steps in trainer.train_steps() for step in steps.values()]
    return BATCH_SIZE / max(min(seconds), 1e-6)
