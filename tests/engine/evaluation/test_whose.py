"""Whose is it: how often the own model is first, users of like topic, and naive Bayes in place of a model."""

from __future__ import annotations

import pytest

from mta_cli.engine.evaluation.naive_bayes import attribute_texts
from mta_cli.engine.evaluation.topics import group_alike
from mta_cli.engine.evaluation.whose import (
    add_whose_sums,
    identify,
    pack_logliks,
    sum_whose,
    unpack_logliks,
)


def test_likelihoods_are_kept_own_first() -> None:
    assert unpack_logliks(pack_logliks(-0.5, [-1.0, -2.0])) == (-0.5, -1.0, -2.0)


def test_how_often_the_own_model_is_first() -> None:
    found = sum_whose([2, 1, 1, 3], [(-1.0, -2.0, -3.0), (-1.0, -0.5, -2.0), (-1.0, -1.0, -4.0), (-1.0,)])
    assert found is not None and found.users == (1, 2), "a user without others is not asked"
    assert found.sums[0].tolist() == pytest.approx([2, 0.5, 2 / 3, (-1 + 1.25) + (-1 + 2.5)])
    assert found.sums[1].tolist() == pytest.approx([1, 1, 1 / 3, 1.5])
    told = identify(found, seed=0)
    assert (told["first"], told["questions"], told["users"], told["ahead"]) == (1.5, 3, 2, 2)
    assert told["chance"] == pytest.approx(1) and told["p"] == 0.5
    assert sum_whose([1], [(-1.0,)]) is None
    twice = add_whose_sums([found, found])
    assert twice.users == found.users and twice.sums.tolist() == (2 * found.sums).tolist()
    with pytest.raises(ValueError, match="different users"):
        add_whose_sums([found, sum_whose([1], [(-1.0, -2.0)])])  # type: ignore[list-item]


def test_groups_are_of_equal_size_and_like_topic() -> None:
    topics = {
        user: ("ships sail the sea", "horses run in fields", "robots dream of code")[user % 3] for user in range(19)
    }
    groups = group_alike(list(topics), topics, {}, 16)
    assert [len(group) for group in groups] == [10, 9] and {one for group in groups for one in group} == set(topics)
    for group in groups:
        for user, others in group.items():
            assert sorted((user, *others)) == list(group)
            same = sum(topics[other] == topics[user] for other in others)
            assert all(topics[other] == topics[user] for other in others[:same]), "the nearest first"
    assert {user for user in topics if user % 3 == 0} < set(groups[0])
    assert group_alike(list(reversed(topics)), topics, {}, 16) == groups
    named = group_alike(list(topics), topics, dict.fromkeys((0, 1, 2), "team"), 3)
    assert list(named[0]) == [0, 1, 2], "a group of a file before a topic"
    teams = {user: "red" if user < 9 else "blue" for user in range(18)}
    by_team = group_alike(list(topics), topics, teams, 16)
    assert [list(group) for group in by_team] == [[*range(9), 18], list(range(9, 18))], "whoever is alone joins others"
    assert group_alike([], {}, {}, 16) == [] and group_alike([5], {}, {}, 16) == [{5: ()}]


def test_naive_bayes_finds_a_style_among_the_users_who_are_asked() -> None:
    written = {1: ["HELLO THERE. HB", "ASK YOUR ADMIN. HB"], 2: ["hi, all good :)", "sure thing :)"], 3: []}
    found = attribute_texts(written, [(1, "STATUS IS GREEN. HB", (2, 3)), (2, "cool :)", (1,)), (3, "x", ())])
    assert [len(one) for one in found] == [3, 2, 1]
    assert found[0][0] == max(found[0]) > -0.1 and found[1][0] > found[1][1]
    (other_case,) = attribute_texts(written, [(1, "status is green. hb", (2,))])
    assert other_case[0] < other_case[1], "capitals are part of a style"
    assert attribute_texts({}, [(1, "a text", (2,))]) == [[0.0, 0.0]], "nobody wrote anything"
