"""People who leave while a bank is made of their words: forgotten, or without consent any more.

What only they are behind is not stored; what many are behind, such as a task adapter, is made anew without them. Knows
no terminal and no SQL.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mta_cli.errors import IntegrityFault
from mta_cli.events import Note
from mta_cli.pipeline.users.dependents import join_names

if TYPE_CHECKING:
    from store.records import Bank, User
    from store.registry import Registry


class UsersWithdrew(IntegrityFault):
    """People left before a bank held more than plans: it is to be begun anew without them.

    Names nobody, for a run keeps this text longer than the store may keep a name.
    """

    def __init__(self, bank: Bank) -> None:
        super().__init__("People left while the bank was made of their words.", hint="run it again")
        self.bank = bank


def consenting_user_ids(reg: Registry, users: Iterable[User], purpose: str = "") -> set[int]:
    """The numbers of those who are there and consent; a bank with a `purpose` serves nobody and needs no consent."""
    return {number for number, can_anchor in reg.users.existing_users(users).items() if can_anchor or purpose}


def rebuild_note(reg: Registry, bank: Bank, users: Sequence[User]) -> Note:
    """That a bank is begun anew without those of `users` who left."""
    there = consenting_user_ids(reg, users)
    names = join_names([user.name for user in users if user.id not in there])
    return Note(
        f"{names} left while bank {bank.name} v{bank.version} was made of their words too: it is begun anew without "
        "them.",
        warning=True,
    )


def anchors_dropped_note(task: str, names: Sequence[str]) -> Note:
    """That nothing was kept of anchors whose people left."""
    return Note(
        f"{join_names(names)} left while being an anchor: nothing was kept, and nobody stands in that place until "
        f"`mta bank build --task {shlex.quote(task)} --refresh`.",
        warning=True,
    )
