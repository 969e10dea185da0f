"""Anchors cover the population; the same seed gives the same ones."""

from __future__ import annotations

import numpy as np

from mta_cli.engine.retrieval.anchors import choose_anchors, choose_replacements


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


def test_replacements_are_of_the_clusters_in_which_no_kept_anchor_is() -> None:
    profiles = groups([5, 3, 4])
    items = [9, 30, 9, 9, 9, 12, 40, 12, 8, 8, 8, 50]
    assert [c.index for c in choose_replacements(profiles, items, 3, [2, 9], seed=0, pick="longest")] == [6]
    found = choose_replacements(profiles, items, 3, [6], seed=0, pick="longest")
    assert [(c.index, c.cluster_size) for c in found] == [(1, 5), (11, 4)], "the largest cluster first"
    assert choose_replacements(profiles, items, 3, [0, 5, 8], seed=0, pick="longest") == []


def test_replacements_go_on_where_some_are_chosen() -> None:
    profiles = groups([5, 3, 4])
    every = choose_replacements(profiles, [1] * 12, 3, [], seed=0, pick="medoid")
    for done in range(1, 4):
        kept = [choice.index for choice in every[:done]]
        left = choose_replacements(profiles, [1] * 12, 3, kept, seed=0, pick="medoid")
        assert [choice.index for choice in left] == [choice.index for choice in every[done:]]


def test_kept_anchors_that_share_a_cluster_leave_no_more_places_than_are_free() -> None:
    profiles = groups([5, 3, 4])
    found = choose_replacements(profiles, [1] * 12, 3, [0, 1], seed=0, pick="longest")
    assert len(found) == 1 and found[0].cluster_size == 4


def test_fewer_candidates_than_anchors_are_no_fault() -> None:
    found = choose_replacements(groups([1, 1]), [1, 1], 5, [0], seed=0, pick="longest")
    assert [choice.index for choice in found] == [1]
