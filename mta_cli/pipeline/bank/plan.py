"""The plan of a bank build: its data, memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.events import PlanLine
from mta_cli.pipeline.bank.contributors import BankInputs, Contributor
from mta_cli.pipeline.bank.task_adapter import find_reusable_task_adapter
from mta_cli.pipeline.training.estimate import RowTokens, TokenLoad, cost_lines, sample_row_tokens
from mta_cli.pipeline.training.groups import MAX_USERS_PER_GROUP

if TYPE_CHECKING:
    from mta_cli.pipeline.requests import BankRequest
    from store.registry import Registry


def build_plan_lines(reg: Registry, inputs: BankInputs) -> tuple[PlanLine, ...]:
    """Data, memory and time of a build, estimated from a sample of the data and the speed of this machine."""
    request = inputs.request
    shared = find_reusable_task_adapter(reg, request, inputs.pool) is not None
    rows = sample_rows(reg, request, inputs.pool)
    return (
        PlanLine("task", request.task.name),
        PlanLine("bank", request.name or request.task.name),
        PlanLine("base", request.base.name),
        PlanLine("embedder", request.embedder.name),
        PlanLine("candidates", f"{len(inputs.candidates)} users, {sum(len(c.items) for c in inputs.candidates)} items"),
        *([PlanLine("task adapter", "reused from a bank with the same items")] if shared else []),
        *cost_lines(
            reg,
            request.base,
            request.machine,
            estimate_build_load(inputs, shared, rows),
            rows.anchors,
            request.options.batch_size,
        ),
    )


@dataclass(frozen=True)
class BuildRowTokens:
    """Estimated tokens of a training row of the task adapter, and of an anchor, whose rows show more history."""

    task_adapter: RowTokens
    anchors: RowTokens


def sample_rows(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> BuildRowTokens:
    """Estimate the tokens of a training row by building rows for a sample of the items of `pool`."""
    items, shown = [item for candidate in pool for item in candidate.items], request.prompt.history_items
    task_adapter, anchors = (
        sample_row_tokens(reg, request.base, request.task, items, shown, mix) for mix in (request.history_mix, None)
    )
    return BuildRowTokens(task_adapter, anchors)


def estimate_build_load(inputs: BankInputs, shared: bool, rows: BuildRowTokens) -> tuple[TokenLoad, ...]:
    """Upper bounds of a build's training loads: first the load of the task adapter, then the load of the anchors.

    The first is zero if the task adapter is reused (`shared`) or switched off. It includes the two adapters, each on
    half of the users, that are trained to fit the weights of the label memory.
    """
    request, options = inputs.request, inputs.request.options
    row, pooled_row = rows.anchors.mean, rows.task_adapter.mean
    items = sum(len(c.items) for c in inputs.pool) if options.task_adapter and not shared else 0
    pooled = items * options.task_epochs * (2 if request.task.labels and options.held_out_weights else 1)
    longest = sum(sorted((len(c.items) for c in inputs.candidates), reverse=True)[: options.anchor_count])
    return (
        TokenLoad(
            round(pooled_row * pooled), options.task_placement, round(pooled_row * items), rank=options.task_rank
        ),
        TokenLoad(
            round(row * longest * options.epochs),
            options.placement,
            round(row * longest),
            min(options.anchor_count, MAX_USERS_PER_GROUP),
            options.rank,
        ),
    )
