"""Provenance: the users whose items are in a bank, or behind a user's answers. Only reads the store."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.pipeline.bases_in_use import base_name
from mta_cli.pipeline.user_weights import anchor_label
from mta_cli.pipeline.users.dependents import banks_pooling_user

if TYPE_CHECKING:
    from store.records import AnchorWeight, Bank, User
    from store.registry import Registry

TRAINED_USERS_KEY = "people"  # the key of the number of users in a task adapter's config

Entry = dict[str, Any]


def count_bank_users(reg: Registry, bank: Bank) -> Entry:
    """The number of users of the task adapter (None if unknown), and the number of users with neighbours."""
    pooled = None
    if bank.task_adapter is not None:
        with suppress(NotFound):  # an incomplete bank: `mta bank verify` reports it
            pooled = reg.adapters.get(bank.task_adapter).config.get(TRAINED_USERS_KEY)
    return {"task_adapter_people": pooled, "neighbour_people": reg.neighbours.count_users(bank.id)}


def user_dependencies(reg: Registry, user: User) -> list[Entry]:
    """The other users' data on which a user's models depend, one entry for each bank.

    `anchors` are the names of the anchors in the recipe or stack. `basis_anchors` counts the bank's anchors on which a
    core depends. Task adapter and neighbours, with the numbers of their users, affect every answer.
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
    """The banks that use a user's data in other ways than as an anchor.

    For each bank, `perhaps_task_adapter` says whether its task adapter may be trained on the user's items (see
    `banks_pooling_user`), and `neighbours` how many of these items are neighbours of its label memory.
    """
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
