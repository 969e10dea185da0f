"""The map of people: principal components that agree with a plain decomposition, anchors, neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mta_cli.errors import IntegrityFault
from mta_cli.pipeline.bank import user_map as module
from mta_cli.pipeline.bank.user_map import compute_user_map, find_similar_users
from mta_cli.pipeline.data.profiles import profile_matrix
from store.records import Bank, Profile
from store.registry import Registry
from tests.store import making

WIDTH = 12


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as opened:
        yield opened


def profile(
    reg: Registry, user: int, vector: np.ndarray, *, task: str = "free", embedder: str = making.EMBEDDER
) -> None:
    reg.profiles.save_profile(Profile(user, task, embedder, vector.astype("<f4").tobytes(), 1, user))


def crowd(reg: Registry, count: int, seed: int = 0) -> list[int]:
    """People in two groups that lie far apart in the first coordinate."""
    rng = np.random.default_rng(seed)
    users = [making.person(reg, f"person {n}", "words") for n in range(count)]
    for n, user in enumerate(users):
        vector = rng.normal(size=WIDTH)
        vector[0] += 6.0 if n % 2 else -6.0
        profile(reg, user, vector * (n + 1))
    return users


def bank_of(reg: Registry, anchors: list[int]) -> Bank:
    return making.bank(reg, anchors)


def test_the_directions_are_those_of_a_plain_decomposition(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROFILE_BATCH", 7)
    users = crowd(reg, 40)
    drawn = compute_user_map(reg, bank_of(reg, users[:3]))
    _, rows = profile_matrix(reg, "free", making.EMBEDDER)
    around = rows.astype(float) - rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(around, full_matrices=False)
    expected = around @ directions[:2].T
    assert drawn.user_ids.tolist() == users
    assert np.allclose(np.abs(drawn.points), np.abs(expected), atol=1e-5)
    assert np.allclose(drawn.explained_variance, (sizes**2 / (sizes**2).sum())[:2], atol=1e-5)
    assert drawn.explained_variance[0] > drawn.explained_variance[1] > 0


def test_the_same_profiles_give_the_same_map_however_they_are_read(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of(reg, crowd(reg, 30)[:2])
    once = compute_user_map(reg, bank)
    monkeypatch.setattr(module, "PROFILE_BATCH", 4)
    again = compute_user_map(reg, bank)
    assert np.allclose(once.points, again.points, atol=1e-5)
    assert once.nearest_anchor.tolist() == again.nearest_anchor.tolist()


def test_each_direction_is_turned_to_its_largest_coordinate(reg: Registry) -> None:
    users = [making.person(reg, name, "words") for name in "abcd"]
    for user, first in zip(users, (-1.0, -1.0, 1.0, 1.0), strict=True):
        profile(reg, user, np.array([first, 0.01 * user, 0.3]))
    drawn = compute_user_map(reg, bank_of(reg, users[:1]))
    assert [place > 0 for place in drawn.points[:, 0].tolist()] == [False, False, True, True]


def test_anchors_have_a_place_and_the_people_nearest_to_them(reg: Registry) -> None:
    users = crowd(reg, 20)
    left, right = users[0], users[1]
    drawn = compute_user_map(reg, bank_of(reg, [left, right]))
    assert [mark.anchor.user_id for mark in drawn.map_anchors] == [left, right]
    assert [mark.nearest_users for mark in drawn.map_anchors] == [10, 10]
    assert drawn.nearest_anchor.tolist() == [0, 1] * 10
    for mark in drawn.map_anchors:
        assert mark.point == pytest.approx(drawn.locate_user(mark.anchor.user_id or 0), abs=1e-5)


def test_an_anchor_whose_person_is_forgotten_has_no_place(reg: Registry) -> None:
    users = crowd(reg, 9)
    bank = bank_of(reg, [users[0], users[1]])
    reg.users.forget(users[0])
    drawn = compute_user_map(reg, bank)
    assert [mark.point is None for mark in drawn.map_anchors] == [True, False]
    assert [mark.nearest_users for mark in drawn.map_anchors] == [0, 8]
    assert drawn.locate_user(users[0]) is None
    reg.users.forget(users[1])
    lonely = compute_user_map(reg, bank)
    assert set(lonely.nearest_anchor.tolist()) == {-1}
    assert [mark.point for mark in lonely.map_anchors] == [None, None]


def test_other_tasks_and_embedders_are_not_on_the_map(reg: Registry) -> None:
    users = crowd(reg, 6)
    profile(reg, users[0], np.ones(3), task="lamp-2")
    profile(reg, users[0], np.ones(3), embedder="sha256:other")
    assert compute_user_map(reg, bank_of(reg, users[:1])).user_ids.tolist() == users


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_people_make_a_map_too(reg: Registry, count: int) -> None:
    anchor = making.person(reg, "anchor", "words")
    bank = bank_of(reg, [anchor])
    for user in crowd(reg, count):
        assert reg.users.by_id(user)
    drawn = compute_user_map(reg, bank)
    assert drawn.points.shape == (count, 2)
    assert np.isfinite(drawn.points).all()
    assert all(0 <= share <= 1 for share in drawn.explained_variance)


def test_profiles_of_one_number_make_a_line(reg: Registry) -> None:
    users = [making.person(reg, name, "words") for name in "abc"]
    for user, value in zip(users, (1.0, -2.0, 3.0), strict=True):
        profile(reg, user, np.array([value]))
    drawn = compute_user_map(reg, bank_of(reg, users[:1]))
    assert drawn.points[:, 1].tolist() == [0, 0, 0]
    assert len(set(drawn.points[:, 0].tolist())) == 2


def test_profiles_of_different_lengths_are_refused(reg: Registry) -> None:
    users = crowd(reg, 4)
    bank = bank_of(reg, users[:1])
    profile(reg, users[3], np.ones(3))
    with pytest.raises(IntegrityFault, match="differ in length"):
        compute_user_map(reg, bank)
    with pytest.raises(IntegrityFault, match="differ in length"):
        find_similar_users(reg, bank, users[0])


def test_lengths_are_compared_between_pieces_too(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROFILE_BATCH", 1)
    users = crowd(reg, 3)
    bank = bank_of(reg, users[:1])
    profile(reg, users[2], np.ones(3))
    with pytest.raises(IntegrityFault, match="differ in length"):
        compute_user_map(reg, bank)


def test_neighbours_are_the_most_similar_and_never_the_person(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    users = crowd(reg, 25)
    bank = bank_of(reg, users[:1])
    _, rows = profile_matrix(reg, "free", making.EMBEDDER)
    alike = rows @ rows[3]
    expected = [users[n] for n in np.argsort(-alike) if users[n] != users[3]][:5]
    for piece in (4096, 4, 1):
        monkeypatch.setattr(module, "PROFILE_BATCH", piece)
        found = find_similar_users(reg, bank, users[3], 5)
        assert [one.user_id for one in found] == expected
        assert found[0].name == reg.users.by_id(expected[0]).name
        assert found[0].similarity == pytest.approx(float(alike[users.index(expected[0])]), abs=1e-6)


def test_somebody_without_a_profile_has_no_neighbours(reg: Registry) -> None:
    users = crowd(reg, 3)
    stranger = making.person(reg, "stranger", "words")
    assert find_similar_users(reg, bank_of(reg, users[:1]), stranger) == []
    assert len(find_similar_users(reg, bank_of(reg, users[:1]), users[0], 50)) == 2
