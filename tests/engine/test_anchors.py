"""Anchors cover the population; the same seed gives the same ones."""

import numpy as np

from mta_cli.engine.anchors import choose_anchors


def groups(sizes: list[int]) -> np.ndarray:
    """Unit vectors around as many far corners as there are sizes."""
    random = np.random.default_rng(0)
    rows = [
        np.eye(len(sizes))[g] + 0.05 * random.standard_normal(len(sizes)) for g, n in enumerate(sizes) for _ in range(n)
    ]
    matrix = np.asarray(rows, dtype=np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_one_anchor_per_group_with_the_longest_history() -> None:
    profiles = groups([5, 3, 4])
    items = [9, 30, 9, 9, 9, 12, 40, 12, 8, 8, 8, 50]
    found = choose_anchors(profiles, items, 3, seed=0, pick="longest")
    assert [choice.index for choice in found] == [1, 6, 11]
    assert [choice.cluster_size for choice in found] == [5, 3, 4]


def test_the_medoid_is_the_member_nearest_to_the_centre() -> None:
    profiles = groups([6, 6])
    found = choose_anchors(profiles, [1] * 12, 2, seed=0, pick="medoid")
    for choice, members in zip(found, (range(6), range(6, 12)), strict=True):
        centre = profiles[list(members)].mean(axis=0)
        assert choice.index == max(members, key=lambda m: float(profiles[m] @ centre))


def test_the_same_seed_gives_the_same_anchors() -> None:
    profiles = groups([7, 7, 7])
    first, second = (choose_anchors(profiles, list(range(21)), 5, seed=3, pick="longest") for _ in range(2))
    assert first == second


def test_profiles_that_coincide_give_fewer_anchors() -> None:
    profiles = np.ones((4, 2), dtype=np.float32) / np.sqrt(2)
    found = choose_anchors(profiles, [1, 2, 3, 4], 3, seed=0, pick="longest")
    assert [(choice.index, choice.cluster_size) for choice in found] == [(3, 4)]
