"""The users whose histories a bank is made of, and the candidates for anchors among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mta_cli.engine.lora.targets import require_targets
from mta_cli.errors import BadInput, Command, Flag
from mta_cli.events import PlanLine
from mta_cli.pipeline.bank_sizes import choose_bank_sizes
from store.records import Item, User

if TYPE_CHECKING:
    from mta_cli.pipeline.requests import BankRequest
    from store.registry import Registry


@dataclass(frozen=True)
class Contributor:
    """A user whose items are used in the bank: the `items` used, and the number of all the user's items."""

    user: User
    items: tuple[Item, ...]
    items_held: int


@dataclass(frozen=True)
class BankInputs:
    """The inputs of a build: the request with all sizes decided, its users, and the candidates for anchors.

    `size_lines` are plan lines for the sizes that were chosen from the data.
    """

    request: BankRequest
    pool: tuple[Contributor, ...]
    candidates: tuple[Contributor, ...]
    size_lines: tuple[PlanLine, ...] = ()


def gather_bank_inputs(reg: Registry, request: BankRequest) -> BankInputs:
    """Fill in the sizes that the request leaves open, and find the bank's users and the candidates for anchors.

    Raises BadInput if too few users have consented, and UsageError for target modules that the base does not have.
    """
    require_targets(request.options.targets, request.base.path)
    sizes = choose_bank_sizes(reg, request.task.name, request.options, request.user_ids)
    request = replace(request, options=sizes.options)
    pool = find_contributors(reg, request)
    _require_consent(reg, request, pool)
    return BankInputs(request, tuple(pool), tuple(anchor_candidates(pool, request)), sizes.plan_lines)


def find_contributors(reg: Registry, request: BankRequest) -> list[Contributor]:
    """The request's users who consent and have enough items for an anchor or the task adapter.

    Items later than the request's `until` are left out; items without a time are kept.
    """
    task, options, until = request.task.name, request.options, request.until
    found = []
    for user, count in reg.users.users_with_items(task):
        is_asked = request.user_ids is None or user.id in request.user_ids
        if user.can_anchor and count >= options.min_contributor_items and is_asked:
            items = reg.items.recent_items(user.id, task, (options.max_items or None) if until is None else None)
            if until is not None:
                items = [item for item in items if item.time is None or item.time <= until]
                count, items = len(items), items[-options.max_items :]
            if count >= options.min_contributor_items:
                found.append(Contributor(user, tuple(items), count))
    return found


def anchor_candidates(pool: Sequence[Contributor], request: BankRequest) -> list[Contributor]:
    """The users of `pool` with enough items to be an anchor. Raises BadInput if there are too few."""
    task, options = request.task.name, request.options
    found = [candidate for candidate in pool if candidate.items_held >= options.anchor_items]
    if not found and options.anchors == 1:
        raise BadInput(
            f"No user can be an anchor of task {task}: no user has consented and has at least "
            f"{options.anchor_items} items.",
            hint=(
                "record consent with ",
                Command("user consent", "USER", can_anchor=True),
                ", lower ",
                Flag("min_items"),
                ", or import more items",
            ),
        )
    if len(found) < options.anchor_count:
        raise BadInput(
            f"{options.anchor_count} anchors were asked for, but only {len(found)} users can be anchors "
            f"(a user must have consented and have at least {options.anchor_items} items of task {task}).",
            hint=("ask for ", Flag("anchors", len(found)), ", or lower ", Flag("min_items"))
            if found
            else ("lower ", Flag("min_items"), ", or import more items"),
        )
    return found


def _require_consent(reg: Registry, request: BankRequest, pool: Sequence[Contributor]) -> None:
    """Raises BadInput if there are users with enough items but none of them has consented."""
    if pool:
        return
    task, least = request.task.name, request.options.anchor_items
    unconsenting = sum(count >= least and not user.can_anchor for user, count in reg.users.users_with_items(task))
    if unconsenting:
        raise BadInput(
            f"No user of task {task} has consented to be an anchor; {unconsenting:,} users have {least} items or more.",
            hint=("if they all consent: ", Command("user consent", all=True, can_anchor=True, task=task)),
        )
