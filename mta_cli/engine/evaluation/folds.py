"""Who builds, who tunes and who is tested, chosen by seed. Knows numbers of items; no names or texts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TUNING_SHARE = 0.25  # share of the people on whom settings are chosen where there is one fold; as many again are tested


@dataclass(frozen=True)
class UserFold:
    """Disjoint people by id: `bank` gives task adapter and anchors, `test` counts.

    Settings and temperatures come from `tuning`; where that is empty, settings come from the people tested in the other
    folds, each under the bank that had not seen them, and temperatures from others who are tested in this one.
    """

    bank: tuple[int, ...]
    tuning: tuple[int, ...]
    test: tuple[int, ...]


def split_users(items: Mapping[int, int], asked: Sequence[int], folds: int, seed: int) -> list[UserFold]:
    """Folds over people with `items` history items each; who is `asked` (has held-out queries) is tested once.

    People of like history length are spread evenly. One fold is a plain split: half build, a quarter tune, a quarter
    are tested. Raises ValueError where some fold would be without people of one kind.
    """
    order = sorted(items, key=lambda person: (items[person], person))
    draw, known = random.Random(seed), set(asked)
    parts = folds if folds > 1 else round(1 / TUNING_SHARE)
    part: dict[int, int] = {}
    for start in range(0, len(order), parts):
        numbers = list(range(parts))
        draw.shuffle(numbers)
        part |= dict(zip(order[start : start + parts], numbers, strict=False))
    members = [[person for person in sorted(items) if part[person] == number] for number in range(parts)]
    if folds > 1:
        found = [_fold(members[:n] + members[n + 1 :], [], members[n], known) for n in range(folds)]
    else:
        found = [_fold(members[2:], members[1], members[0], known)]
    if not all(fold.bank and fold.test and (fold.tuning or folds > 1) for fold in found):
        raise ValueError(f"{len(items)} people, {len(known)} of them with held-out queries, are too few")
    return found


def _fold(bank: Sequence[Sequence[int]], tuning: Sequence[int], test: Sequence[int], asked: set[int]) -> UserFold:
    return UserFold(
        tuple(sorted(person for group in bank for person in group)),
        tuple(person for person in tuning if person in asked),
        tuple(person for person in test if person in asked),
    )
