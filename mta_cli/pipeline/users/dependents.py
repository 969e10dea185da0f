"""Finds the parts that become stale when a user leaves or withdraws consent, the users who depend on them, and the
remedy.

Changes nothing. Uses neither the terminal nor SQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import Command
from mta_cli.events import Note
from mta_cli.pipeline.bases_in_use import base_name_if_several
from mta_cli.pipeline.runs import bank_label
from mta_cli.text.formatting import join_some

if TYPE_CHECKING:
    from store.records import Bank, User
    from store.registry import Registry
    from store.tables.users import StaleAnchor


Dependent = tuple[str, str, int]
"""(user, bank, version): a user whose recipe or stack depends on a stale anchor of the bank"""


def refresh_command(reg: Registry, bank: Bank) -> Command:
    """The command that removes stale anchors from a bank.

    It refreshes the bank if this is the newest ready one of its task and base, or the newest ready version of its name.
    An older bank cannot be refreshed, so the command removes the whole bank.
    """
    newest, base = reg.banks.latest_ready_bank(bank.task, bank.base), base_name_if_several(reg, bank.base)
    if newest is not None and newest.id == bank.id:
        return Command("bank build", task=bank.task, refresh=True, base=base)
    others = [each for each in reg.banks.all() if (each.name, each.base) == (bank.name, bank.base)]
    ready = [each for each in others if each.status == "ready"]
    if ready and ready[-1].id == bank.id:
        return Command("bank build", task=bank.task, name=bank.name, refresh=True, base=base)
    return Command("bank rm", bank.name, bank_version=bank.version)


def banks_pooling_user(reg: Registry, user: User, *, measuring: bool = False) -> list[Bank]:
    """Banks whose task adapter was trained on a user's items, regardless of the user's current consent.

    With `measuring`, banks of evaluations are included.
    """
    return [
        bank for bank in reg.banks.all(with_evaluations=measuring) if reg.banks.is_task_adapter_user(bank.id, user.id)
    ]


@dataclass(frozen=True)
class StaleParts:
    """The stale parts after a removal or withdrawn consent: anchors, and the users who depend on them.

    The task adapters of the `pooled` banks may be trained on the user's items. Empty if consent is given.
    """

    anchors: list[StaleAnchor] = field(default_factory=list)
    dependents: list[Dependent] = field(default_factory=list)
    pooled: list[Bank] = field(default_factory=list)

    @classmethod
    def find(cls, reg: Registry, anchors: list[StaleAnchor], pooled: list[Bank]) -> StaleParts:
        """The stale parts, with all users whose recipe or stack depends on the anchors."""
        banks = dict.fromkeys((name, version) for name, version, _ in anchors)
        dependents = [
            (user, name, version)
            for name, version in banks
            for user in reg.banks.dependent_users(
                reg.banks.get(name, version).id, [anchor for *bank, anchor in anchors if bank == [name, version]]
            )
        ]
        return cls(anchors, dependents, pooled)

    def notes(self, reg: Registry, whose: str) -> Iterator[Note]:
        """Notes for the user: stale anchors trained on `whose` items, the users who depend on them, the remedy."""
        for bank, version, _ in self.anchors:
            yield Note(f"the anchor of {bank} v{version} that was trained on {whose} is stale", warning=True)
        if self.dependents:
            names = list(dict.fromkeys(user for user, _, _ in self.dependents))
            yield Note(f"users whose recipes or stacks depend on stale anchors: {join_some(names)}", warning=True)
        if self.anchors:
            banks = dict.fromkeys((bank, version) for bank, version, _ in self.anchors)
            commands = [f"`{refresh_command(reg, reg.banks.get(bank, version))}`" for bank, version in banks]
            yield Note(
                "a stale anchor's meta-LoRA still holds what it learned, and others' recipes use it; to end this, "
                f"run {', '.join(commands)}",
                warning=True,
            )
        if self.pooled:
            wanted = [
                Command("bank build", task=bank.task, base=base_name_if_several(reg, bank.base)) for bank in self.pooled
            ]
            builds = ", ".join(f"`{command}`" for command in dict.fromkeys(wanted))
            yield Note(
                f"the task adapters of these banks may hold something of {whose}: "
                f"{', '.join(bank_label(bank) for bank in self.pooled)}. To train new ones without it, run {builds}",
                warning=True,
            )

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """The stale parts as plain values, for results."""
        return {
            "stale_anchors": [
                {"bank": bank, "version": version, "anchor": each} for bank, version, each in self.anchors
            ],
            "resting": [{"user": user, "bank": bank, "version": version} for user, bank, version in self.dependents],
            "task_adapters": [{"bank": bank.name, "version": bank.version} for bank in self.pooled],
        }
