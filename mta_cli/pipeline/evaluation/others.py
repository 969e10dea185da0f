"""Whose models an answer is compared with: the users nearest in topic, so that topic does not pass for style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mta_cli.options import MAX_OTHERS

if TYPE_CHECKING:
    from store.records import User
    from store.registry import Registry


def choose_others(reg: Registry, task: str, embedder: str | None, users: Sequence[User]) -> dict[int, list[int]]:
    """By user id: up to `MAX_OTHERS` other ones of `users`, the nearest first.

    Users of the same group come first where a file gave groups, then the nearest profiles (by `embedder`, a
    fingerprint), then those without a profile.
    """
    import numpy as np

    from mta_cli.pipeline.data.profiles import profile_matrix

    groups, ids = reg.users.groups(task), [user.id for user in users]
    found, matrix = profile_matrix(reg, task, embedder, ids) if embedder is not None else ([], np.zeros((0, 0)))
    row = {user: n for n, user in enumerate(found)}
    chosen = {}
    for user in ids:
        nearness = matrix @ matrix[row[user]] if user in row else np.zeros(len(found))
        near = {other: float(nearness[row[other]]) if other in row else -2.0 for other in ids}
        alike = {other: user in groups and groups.get(other) == groups[user] for other in ids}
        order = sorted((other for other in ids if other != user), key=lambda one: (not alike[one], -near[one], one))
        chosen[user] = order[:MAX_OTHERS]
    return chosen
