"""The plan of an adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mta_cli.events import PlanLine
from mta_cli.pipeline.personalize.fuse import bank_plan_lines
from mta_cli.pipeline.training.estimate import TokenLoad, cost_lines, sample_row_tokens
from mta_cli.pipeline.training.groups import MAX_USERS_PER_GROUP
from mta_cli.text.formatting import join_some
from store.records import Bank, Item, User

if TYPE_CHECKING:
    from mta_cli.pipeline.requests import AdaptRequest
    from store.registry import Registry


def adapt_plan_lines(
    reg: Registry, asked: AdaptRequest, bank: Bank, users: Sequence[User], shots: Mapping[int, Sequence[Item]]
) -> tuple[PlanLine, ...]:
    """Users, bank, and the cost of training, estimated from a sample of the shots and the speed of this machine."""
    from mta_cli.engine.methods.stacks import stack_schedule

    request, options = asked.fuse, asked.options
    busy = [items for items in shots.values() if items]
    every = [item for items in busy for item in items]
    row = sample_row_tokens(reg, request.base, request.task, every, request.prompt.history_items)
    schedules = [stack_schedule(len(items), options, bool(request.task.labels)) for items in busy]
    widest = max((own.batch_size for own in schedules), default=1)
    rows = sum(min(len(items), own.batch_size) * own.steps for items, own in zip(busy, schedules, strict=True))
    load = TokenLoad(
        round(rows * row.mean),
        options.placement,
        round(len(every) * row.mean),
        min(len(busy), MAX_USERS_PER_GROUP),
        options.rank,
        request.options.top_k * bank.config.get("rank", 0),
    )
    return (
        PlanLine(
            "users", f"{join_some([user.name for user in users])}: {len(users)}, {len(busy)} of them with a history"
        ),
        *bank_plan_lines(bank, request),
        *cost_lines(reg, request.base, request.machine, [load], row, widest),
    )
