"""Splits users at random, by seed, into users of the bank, users for tuning settings, and test users."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TUNING_SHARE = 0.25  # with a single fold: a quarter of the users tune settings, another quarter is tested


@dataclass(frozen=True)
class UserFold:
    """Disjoint ids of users. Task adapter and anchors are trained on `bank`, and results are measured on `test`.

    Settings and temperatures are chosen on `tuning`. If it is empty, settings are chosen on the test users of the other
    folds, whose banks do not contain their data, and temperatures on the other test users of this fold or, if there are
    none, of other folds.
    """

    bank: tuple[int, ...]
    tuning: tuple[int, ...]
    test: tuple[int, ...]


def split_users(items: Mapping[int, int], asked: Sequence[int], folds: int, seed: int) -> list[UserFold]:
    """Split users into folds. `items` has each user's number of history items; `asked` are users with held-out queries.

    With several folds, each user in `asked` is tested in exactly one. A single fold is a plain split: half of the users
    are in the bank, a quarter tune settings, and a quarter are tested. Users of similar history length are spread
    evenly. Raises ValueError if a fold would have no bank users, no test users or, with one fold, no tuning users.
    """
    order = sorted(items, key=lambda user: (items[user], user))
    draw, known = random.Random(seed), set(asked)
    parts = folds if folds > 1 else round(1 / TUNING_SHARE)
    part: dict[int, int] = {}
    for start in range(0, len(order), parts):
        numbers = list(range(parts))
        draw.shuffle(numbers)
        part |= dict(zip(order[start : start + parts], numbers, strict=False))
    members = [[user for user in sorted(items) if part[user] == number] for number in range(parts)]
    if folds > 1:
        user_folds = [_fold(members[:n] + members[n + 1 :], [], members[n], known) for n in range(folds)]
    else:
        user_folds = [_fold(members[2:], members[1], members[0], known)]
    if not all(fold.bank and fold.test and (fold.tuning or folds > 1) for fold in user_folds):
        raise ValueError(f"{len(items)} users, {len(known)} of them with held-out queries, are too few")
    return user_folds


def _fold(bank: Sequence[Sequence[int]], tuning: Sequence[int], test: Sequence[int], asked: set[int]) -> UserFold:
    return UserFold(
        tuple(sorted(user for group in bank for user in group)),
        tuple(user for user in tuning if user in asked),
        tuple(user for user in test if user in asked),
    )
