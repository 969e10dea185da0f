"""Provenance: the users whose items a bank, or a user's answers, are made from.

Reads the store only. Knows no terminal and no SQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.pipeline.bases_in_use import base_name
from mta_cli.pipeline.user_weights import anchor_label
from mta_cli.pipeline.users.dependents import banks_pooling_user

if TYPE_CHECKING:
    from store.records import AnchorWeight, Bank, User
    from store.registry import Registry

TRAINED_USERS_KEY = "people"  # the key, in a task adapter's config, of how many it was trained on

Entry = dict[str, Any]


def count_bank_users(reg: Registry, bank: Bank) -> Entry:
    """How many users the task adapter was trained on (None where unknown), and how many have neighbours."""
    pooled = None
    if bank.task_adapter is not None:
        try:
            pooled = reg.adapters.get(bank.task_adapter).config.get(TRAINED_USERS_KEY)
        except NotFound:  # an incomplete bank: `mta bank verify` reports it
            pooled = None
    return {"task_adapter_people": pooled, "neighbour_people": reg.neighbours.count_users(bank.id)}


def user_dependencies(reg: Registry, user: User) -> list[Entry]:
    """The other users' data that a user's models depend on, one entry a bank.

    `anchors` are those of the recipe or stack, by their users' names. `basis_anchors` counts the bank's where a core is
    trained, between the main directions of those that may serve. The task adapter and the neighbours, with counts of
    their users, serve every answer.
    """
    shares: dict[int, list[AnchorWeight]] = {}
    cores = set()
    for recipe in reg.recipes.of_user(user.id):
        shares.setdefault(recipe.bank_id, []).extend(recipe.shares)
    for stack in reg.stacks.of_user(user.id):
        shares.setdefault(stack.bank_id, []).extend(stack.recipe)
        cores |= {stack.bank_id} if stack.numbers is not None else set()
    found = []
    for number in sorted(shares):
        bank, anchors = reg.banks.by_id(number), reg.banks.anchors(number)
        used = {share.anchor_id for share in shares[number] if share.weight != 0.0}
        found.append(
            {
                "bank": bank.name,
                "version": bank.version,
                "task": bank.task,
                "base_name": base_name(reg, bank.base),
                "anchors": [anchor_label(anchor) for anchor in anchors if anchor.id in used],
                "basis_anchors": len(anchors) if number in cores else 0,
                "task_adapter": bank.task_adapter is not None,
                "neighbours": reg.neighbours.count_neighbours(number),
                **count_bank_users(reg, bank),
            }
        )
    return found


def user_contributions(reg: Registry, user: User) -> list[Entry]:
    """A user's data in banks, besides anchors: whether `perhaps_task_adapter` (see `banks_pooling_user`), and how many
    of their items are `neighbours`."""
    held = reg.neighbours.count_by_bank(user.id)
    pooled = {(bank.name, bank.version) for bank in banks_pooling_user(reg, user)}
    return [
        {
            "bank": name,
            "version": version,
            "base_name": base_name(reg, reg.banks.get(name, version).base),
            "perhaps_task_adapter": (name, version) in pooled,
            "neighbours": held.get((name, version), 0),
        }
        for name, version in sorted(pooled | set(held))
    ]
