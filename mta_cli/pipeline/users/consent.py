"""Consent: whether somebody may be an anchor, who helps to serve others. Knows no terminal and no SQL.

Without it nobody is an anchor, counts in a task adapter or in label rates, or is a neighbour of others' questions. What
was trained before stays until the bank is refreshed or built anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mta_cli.events import Done, Event, Note
from mta_cli.pipeline.users.dependents import Resting, document, pooled_in, resting_on, told

if TYPE_CHECKING:
    from store.records import Bank, User
    from store.registry import Registry
    from store.tables.users import StaleAnchor


@dataclass(frozen=True)
class Withdrawn:
    """What a changed consent leaves stale: see `staleness`. Nothing where consent was given."""

    stale: list[StaleAnchor] = field(default_factory=list)
    resting: list[Resting] = field(default_factory=list)
    pooled: list[Bank] = field(default_factory=list)

    def notes(self, reg: Registry, whose: str) -> Iterator[Note]:
        """What the person at the terminal should know."""
        return told(reg, whose, self.stale, self.resting, self.pooled)


def change_consent(reg: Registry, users: Sequence[User], can_anchor: bool) -> Withdrawn:
    """Record what some people consent to; returns what is stale now."""
    pooled: dict[int, Bank] = {}
    stale: list[StaleAnchor] = []
    with reg.transaction():
        for user in users:
            pooled |= {bank.id: bank for bank in pooled_in(reg, user)} if not can_anchor else {}
            stale += reg.users.set_can_anchor(user.id, can_anchor)
        return Withdrawn(stale, resting_on(reg, stale), list(pooled.values()))


def set_consent(reg: Registry, name: str, can_anchor: bool) -> Iterator[Event]:
    """Record what somebody consents to. The result says which anchors are stale now, and who rests on them.

    Raises `NotFound`.
    """
    user = reg.users.get(name)
    left = change_consent(reg, [user], can_anchor)
    yield Note(f"{user.name} may {'' if can_anchor else 'not '}be an anchor.")
    yield from left.notes(reg, user.name)
    changed = user.can_anchor != can_anchor
    found = document(left.stale, left.resting, left.pooled)
    yield Done({"user": user.name, "can_anchor": can_anchor, "changed": changed, **found})
