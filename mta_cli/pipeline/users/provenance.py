"""Whose words stand behind what: the people that a bank was made of, and what of others somebody's answers rest on.

Reads the store only. Knows no terminal and no SQL.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mta_cli.errors import NotFound
from mta_cli.pipeline.personalize.weights import anchor_label
from mta_cli.pipeline.users.dependents import banks_pooling_user

if TYPE_CHECKING:
    from store.records import AnchorWeight, Bank, User
    from store.registry import Registry

TRAINED_USERS_KEY = "people"  # the key, in a task adapter's config, of how many it was trained on

Entry = dict[str, Any]


def count_bank_users(reg: Registry, bank: Bank) -> Entry:
    """How many people the task adapter was trained on (None where that is not known), and how many have neighbours."""
    pooled = None
    if bank.task_adapter is not None:
        try:
            pooled = reg.adapters.get(bank.task_adapter).config.get(TRAINED_USERS_KEY)
        except NotFound:  # a bank that is not whole: `mta bank verify` says so
            pooled = None
    return {"task_adapter_people": pooled, "neighbour_people": reg.neighbours.count_users(bank.id)}


def user_dependencies(reg: Registry, user: User) -> list[Entry]:
    """What of others the personal models of somebody rest on, an entry for each bank.

    `anchors` are those of their recipe or stack, by their people's names; `basis_anchors` counts those between whose
    main directions a core stands. The task adapter and the neighbours, counted with their people, serve every answer.
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
                "anchors": [anchor_label(anchor) for anchor in anchors if anchor.id in used],
                "basis_anchors": len(anchors) if number in cores else 0,
                "task_adapter": bank.task_adapter is not None,
                "neighbours": reg.neighbours.count_neighbours(number),
                **count_bank_users(reg, bank),
            }
        )
    return found


def user_contributions(reg: Registry, user: User) -> list[Entry]:
    """What banks hold of somebody, besides their anchors: whether `perhaps_task_adapter` (see `pooled_in`), and how
    many of their items are `neighbours`."""
    held = Counter((row["bank"], row["version"]) for row in reg.subject_data.neighbours(user.id))
    pooled = {(bank.name, bank.version) for bank in banks_pooling_user(reg, user)}
    return [
        {
            "bank": name,
            "version": version,
            "perhaps_task_adapter": (name, version) in pooled,
            "neighbours": held[name, version],
        }
        for name, version in sorted(pooled | set(held))
    ]
