"""Choosing anchors that cover the population. Knows vectors; neither names nor models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class AnchorChoice:
    """The candidate (row of the matrix) that stands for a cluster, and how many candidates the cluster holds."""

    index: int
    cluster: int
    cluster_size: int


def choose_anchors(
    profiles: "NDArray[np.float32]", items: Sequence[int], count: int, *, seed: int, pick: str
) -> list[AnchorChoice]:
    """One candidate per K-means cluster of `profiles [candidates, dim]`: the `longest` history, or the `medoid`.

    Ties go to the smaller row. Fewer than `count` come back when profiles coincide. Clusters are numbered in the order
    of their anchors' rows.
    """
    import warnings

    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # coinciding profiles are reported by the shorter answer
        labels = KMeans(n_clusters=count, random_state=seed, n_init=10).fit_predict(profiles)
    chosen: list[tuple[int, int]] = []
    for cluster in sorted(set(labels.tolist())):
        members = np.flatnonzero(labels == cluster)
        centre = profiles[members].mean(axis=0)
        centrality = profiles[members] @ centre
        keys = [
            items[m] if pick == "longest" else c for m, c in zip(members.tolist(), centrality.tolist(), strict=True)
        ]
        chosen.append((int(members[int(np.argmax(keys))]), len(members)))
    return [AnchorChoice(index, cluster, size) for cluster, (index, size) in enumerate(sorted(chosen))]
