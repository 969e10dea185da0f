"""Choosing anchors that cover the population, by K-means over profiles."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AnchorChoice:
    """The candidate (row of the profiles) that represents a cluster, and the number of candidates in the cluster."""

    index: int
    cluster: int
    cluster_size: int


def choose_anchors(
    profiles: NDArray[np.float32], items: Sequence[int], count: int, *, seed: int, pick: str
) -> list[AnchorChoice]:
    """One candidate per K-means cluster of `profiles [candidates, dim]`: the one with the `longest` history (most
    `items`), or the `medoid`.

    Ties go to the lower row. Fewer than `count` are returned if profiles coincide. Clusters are numbered in the order
    of their anchors' rows.
    """
    clusters = _clusters(profiles, count, seed)
    chosen = sorted((_pick_representative(profiles, items, members, pick), len(members)) for members in clusters)
    return [AnchorChoice(index, cluster, size) for cluster, (index, size) in enumerate(chosen)]


def choose_replacements(
    profiles: NDArray[np.float32], items: Sequence[int], count: int, kept: Sequence[int], *, seed: int, pick: str
) -> list[AnchorChoice]:
    """One candidate for each cluster of `choose_anchors` that contains none of `kept` (rows of anchors that stay).

    `count` includes the anchors that stay. At most `count - len(kept)` candidates are returned, the largest cluster's
    first; fewer if there are not enough clusters.
    """
    clusters = _clusters(profiles, min(count, len(profiles)), seed)
    vacant = [members for members in clusters if not set(kept).intersection(members)]
    vacant.sort(key=lambda members: (-len(members), members[0]))
    return [
        AnchorChoice(_pick_representative(profiles, items, members, pick), place, len(members))
        for place, members in enumerate(vacant[: max(0, count - len(kept))])
    ]


def _clusters(profiles: NDArray[np.float32], count: int, seed: int) -> list[list[int]]:
    """The rows of each K-means cluster; fewer than `count` clusters where profiles coincide."""

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # callers see coinciding profiles from the shorter result
        labels = KMeans(n_clusters=count, random_state=seed, n_init=10).fit_predict(profiles)
    return [np.flatnonzero(labels == cluster).tolist() for cluster in sorted(set(labels.tolist()))]


def _pick_representative(profiles: NDArray[np.float32], items: Sequence[int], members: list[int], pick: str) -> int:
    """The row that represents a cluster."""
    centrality = profiles[members] @ profiles[members].mean(axis=0)
    keys = [items[m] if pick == "longest" else c for m, c in zip(members, centrality.tolist(), strict=True)]
    return int(members[int(np.argmax(keys))])
