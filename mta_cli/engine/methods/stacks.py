"""Stage 3, the user's own stack: a LoRA, trained above the frozen fusion. Its defaults are in `options.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.methods.shots import stack_examples
from mta_cli.engine.training.session import TrainingResult
from mta_cli.engine.training.trainer import GroupMember, Schedule
from mta_cli.engine.training.work import GroupWork
from mta_cli.options import MIN_STACK_PASSES, STACK_PASSES, AdaptOptions, MemoryOptions

FrozenLoras = tuple[LoraWeights, ...]


@dataclass(frozen=True)
class UserStack:
    """A user's trained stack, rounded as the store keeps it, and its size in bytes.

    `loras` holds the stack. It is empty for a user without shots, and if the training diverged (`failed`).
    """

    loras: tuple[LoraWeights, ...] = ()
    bytes: int = 0
    failed: bool = False


def initial_stack(context: MethodContext, options: AdaptOptions) -> LoraWeights:
    """The stack that every user's training starts from; its ΔW is zero."""
    model = context.loaded_base.model
    return init_lora_weights(model, options.targets, options.placement, options.rank, options.alpha, context.seed)


def stack_schedule(rows: int, options: AdaptOptions, labels: bool) -> Schedule:
    """The training schedule of a stack with `rows` shots; `labels` says whether the task has labels.

    It has `options.epochs` passes; without these, `options.steps` steps. The default is `STACK_PASSES` / √rows passes,
    at least `MIN_STACK_PASSES`. Fewer passes do not teach a style, and more overfit a short history.
    """
    rate = options.peak_rate(labels)
    if options.steps is not None and options.epochs is None:
        return Schedule(options.steps, options.batch_size, rate)
    epochs = options.epochs or max(MIN_STACK_PASSES, round(STACK_PASSES / math.sqrt(max(1, rows))))
    return Schedule.from_epochs(rows, epochs, options.batch_size, rate)


def stack_member(
    context: MethodContext,
    user: UserShots,
    fusion: FrozenLoras,
    start: LoraWeights,
    options: AdaptOptions,
    memory: MemoryOptions,
) -> GroupMember:
    """The group member that trains the user's stack: shots, schedule and the frozen fusion below it."""
    examples = stack_examples(context, user, memory)
    schedule = stack_schedule(len(user.rows), options, bool(context.task.labels))
    return GroupMember(start, examples, schedule, context.seed, fusion)


def stack_work(
    context: MethodContext,
    users: Sequence[UserShots],
    fusions: Sequence[FrozenLoras],
    options: AdaptOptions,
    memory: MemoryOptions,
) -> GroupWork | None:
    """The training of stacks above the fusions of all `users` with shots, in one group; None if no user has shots."""
    start = initial_stack(context, options)
    members = tuple(
        stack_member(context, user, fusion, start, options, memory)
        for user, fusion in zip(users, fusions, strict=True)
        if user.rows
    )
    return GroupWork(members) if members else None


def read_stacks(users: Sequence[UserShots], work: GroupWork | None, result: TrainingResult | None) -> list[UserStack]:
    """The stack of each of `users`, from the `result` of their `work`, rounded to float16 as in the store."""
    if work is None:
        return [UserStack() for _ in users]
    assert result is not None, "the work was done"
    size = 2 * work.members[0].initial_weights.num_parameters  # two bytes for each float16
    loras = (result.weights.get(member) for member in range(len(work.members)))
    trained = (UserStack(failed=True) if lora is None else UserStack((lora,), size) for lora in loras)
    return [next(trained) if user.rows else UserStack() for user in users]


def train_stacks(
    context: MethodContext,
    users: Sequence[UserShots],
    fusions: Sequence[FrozenLoras],
    options: AdaptOptions,
    memory: MemoryOptions,
) -> list[UserStack]:
    """The stack of each of `users`, trained above their fusion on the context's base in this process."""
    work = stack_work(context, users, fusions, options, memory)
    return read_stacks(users, work, None if work is None else work.train(context.loaded_base))
