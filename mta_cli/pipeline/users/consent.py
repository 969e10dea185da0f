"""Consent: whether a user may be an anchor and help to serve others. Uses neither the terminal nor SQL.

Items of a user without consent are not used for anchors, task adapters, label rates, or neighbours of other users'
questions. Earlier training results stay until the bank is refreshed or built again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mta_cli.errors import NotFound
from mta_cli.events import Event, JobResult, Note
from mta_cli.pipeline.users.dependents import StaleParts, banks_pooling_user
from mta_cli.pipeline.users.in_use import change_when_unused

if TYPE_CHECKING:
    from store.records import Bank, User
    from store.registry import Registry
    from store.tables.users import StaleAnchor


def change_consent(reg: Registry, users: Sequence[User], can_anchor: bool) -> StaleParts:
    """Record the consent of some users; returns the stale parts. Raises the errors of `Users.set_can_anchor`."""
    pooled: dict[int, Bank] = {}
    stale: list[StaleAnchor] = []
    with reg.transaction():
        for user in users:
            pooled |= {bank.id: bank for bank in banks_pooling_user(reg, user)} if not can_anchor else {}
            stale += reg.users.set_can_anchor(user.id, can_anchor)
        return StaleParts.find(reg, stale, list(pooled.values()))


def set_consent(reg: Registry, name: str, can_anchor: bool, *, wait: bool = False) -> Iterator[Event]:
    """Record a user's consent. The result lists the anchors that are stale now, and the users who depend on them.

    Raises NotFound, and UserInUse if consent is withdrawn while a job uses the user's items, unless it may `wait`.
    """
    user = reg.users.get(name)
    left = yield from change_when_unused(partial(change_consent, reg, [user], can_anchor), wait=wait)
    yield Note(f"{user.name} may {'' if can_anchor else 'not '}be an anchor.")
    yield from left.notes(reg, user.name)
    changed = user.can_anchor != can_anchor
    yield JobResult({"user": user.name, "can_anchor": can_anchor, "changed": changed, **left.entries()})


def set_consent_of_all(
    reg: Registry, can_anchor: bool, *, task: str | None = None, wait: bool = False
) -> Iterator[Event]:
    """Record the consent of every user, or of every user with items of `task`, in one transaction.

    The result names the users whose consent has changed, and lists the stale parts. Raises NotFound for an unknown task
    and if there is no such user, and UserInUse under the conditions of `set_consent`.
    """
    from mta_cli.pipeline.data.tasks import find_task

    if task is None:
        users = [reg.users.get(name) for name in reg.users.names()]
    else:
        users = [user for user, _ in reg.users.users_with_items(find_task(reg, task).name)]
    if not users:
        raise NotFound("There are no users yet." if task is None else f"No user has items of task {task}.")
    changed = [user for user in users if user.can_anchor != can_anchor]
    left = yield from change_when_unused(partial(change_consent, reg, changed, can_anchor), wait=wait)
    said = f"{len(users):,} users may {'' if can_anchor else 'not '}be anchors"
    yield Note(f"{said}; {len(changed):,} of them could {'not ' if can_anchor else ''}before.")
    yield from left.notes(reg, "them")
    names = [user.name for user in changed]
    yield JobResult({"users": len(users), "can_anchor": can_anchor, "changed": names, **left.entries()})
