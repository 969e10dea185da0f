"""Who builds, tunes and is tested: disjoint, complete, even in history lengths, and chosen by the seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.lab.evaluation.folds import UserFold, split_users

People = Mapping[int, int]
PEOPLE = st.dictionaries(st.integers(1, 10_000), st.integers(1, 60), min_size=12, max_size=60)
SEEDS = st.integers(0, 1000)
folding = settings(max_examples=60, deadline=None)


def parts(items: People, folds: list[UserFold]) -> list[list[int]]:
    """Who is in no fold's bank, fold by fold."""
    return [sorted(items.keys() - set(fold.bank)) for fold in folds]


@folding
@given(items=PEOPLE, folds=st.integers(2, 6), seed=SEEDS, draw=st.randoms(use_true_random=False))
def test_everybody_asked_is_tested_once_and_builds_all_other_folds(
    items: People, folds: int, seed: int, draw: random.Random
) -> None:
    silent = set(draw.sample(sorted(items), len(items) // 4))
    asked = [person for person in items if person not in silent]
    try:
        found = split_users(items, asked, folds, seed)
    except ValueError:  # a part without tested users
        assert any(silent.issuperset(part) for part in parts(items, split_users(items, list(items), folds, seed)))
        return
    assert sorted(person for fold in found for person in fold.test) == sorted(asked)
    for fold, own in zip(found, parts(items, found), strict=True):
        assert fold.tuning == () and not set(fold.bank) & set(fold.test)
        assert set(own) - silent == set(fold.test)
    for person in items:
        assert sum(person in fold.bank for fold in found) == folds - 1


@folding
@given(items=PEOPLE, seed=SEEDS)
def test_a_plain_split_has_three_disjoint_kinds(items: People, seed: int) -> None:
    (fold,) = split_users(items, list(items), 1, seed)
    assert sorted((*fold.bank, *fold.tuning, *fold.test)) == sorted(items)
    quarters = len(items) / 4
    for people, share in ((fold.bank, 2), (fold.tuning, 1), (fold.test, 1)):
        assert abs(len(people) - share * quarters) < share


@folding
@given(items=PEOPLE, folds=st.integers(2, 6), seed=SEEDS)
def test_histories_of_every_length_are_spread_evenly(items: People, folds: int, seed: int) -> None:
    lengths = [
        sorted(items[person] for person in own) for own in parts(items, split_users(items, list(items), folds, seed))
    ]
    assert max(map(len, lengths)) - min(map(len, lengths)) <= 1
    for ours in lengths:
        for theirs in lengths:
            assert all(short <= longer for short, longer in zip(ours, theirs[1:], strict=False))


@folding
@given(items=PEOPLE, folds=st.integers(1, 4), seed=SEEDS, draw=st.randoms(use_true_random=False))
def test_the_seed_alone_decides(items: People, folds: int, seed: int, draw: random.Random) -> None:
    shuffled = dict(draw.sample(list(items.items()), len(items)))
    found = split_users(items, list(items), folds, seed)
    assert split_users(shuffled, list(shuffled), folds, seed) == found
    others = [split_users(items, list(items), folds, seed + n) for n in range(1, 5)]
    assert folds == 1 or any(other != found for other in others)


def test_who_has_no_queries_builds_and_is_neither_tested_nor_tuned_on() -> None:
    items, asked = dict.fromkeys(range(40), 10), list(range(20))
    (fold,) = split_users(items, asked, 1, 0)
    assert set(fold.test) | set(fold.tuning) <= set(asked)
    assert set(fold.bank) - set(asked)


@pytest.mark.parametrize(
    ("people", "asked", "folds"),
    [
        (0, range(0), 1),
        (0, range(0), 2),
        (1, range(1), 2),
        (2, range(2), 1),
        (2, range(2), 3),
        (9, range(0), 2),
        (9, range(1), 2),
        (9, range(1), 1),
        (5, range(5), 6),
    ],
)
def test_too_few_people_are_named_with_their_number(people: int, asked: range, folds: int) -> None:
    with pytest.raises(ValueError, match=f"^{people} users, {len(asked)} of them with held-out queries, are too few"):
        split_users(dict.fromkeys(range(people), 3), list(asked), folds, 0)


@pytest.mark.parametrize("ask", [lambda people: people, lambda people: [*people, 77, 77], lambda people: people * 2])
def test_who_is_unknown_or_named_twice_is_nobody_more(ask: Callable[[list[int]], list[int]]) -> None:
    people = list(range(6))
    assert split_users(dict.fromkeys(people, 3), ask(people), 2, 0) == split_users(
        dict.fromkeys(people, 3), people, 2, 0
    )
