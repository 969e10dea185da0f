"""A map of users in two dimensions: the first two principal components of all profiles of a task, with the anchors.

Profiles are read in batches, so memory does not grow with the number of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.errors import Command, IntegrityFault
from store.records import Anchor, Bank

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from store.registry import Registry

PROFILE_BATCH = 4096  # profiles held in memory at once

Point = tuple[float, float]


@dataclass(frozen=True)
class MapAnchor:
    """An anchor on the map. `point` is None if its user was forgotten or has no profile.

    `nearest_users` is the number of users whose most similar anchor this is.
    """

    anchor: Anchor
    point: Point | None
    nearest_users: int


@dataclass(frozen=True, eq=False)
class UserMap:
    """The points of all users with a profile, in ascending order of user ids.

    `explained_variance` is the share of the total variance that each direction explains. `nearest_anchor` is the index
    of the anchor most similar to each user; -1 if no anchor has a point.
    """

    user_ids: NDArray[np.int64]  # [users]
    points: NDArray[np.float32]  # [users, 2]
    explained_variance: Point
    map_anchors: tuple[MapAnchor, ...]
    nearest_anchor: NDArray[np.int16]  # [users]

    def locate_user(self, user_id: int) -> Point | None:
        """The point of a user; None for a user without a profile."""
        import numpy as np

        row = int(np.searchsorted(self.user_ids, user_id))
        if row == len(self.user_ids) or self.user_ids[row] != user_id:
            return None
        return float(self.points[row, 0]), float(self.points[row, 1])


@dataclass(frozen=True)
class SimilarUser:
    """A user and the cosine `similarity` of their profile with another user's."""

    user_id: int
    name: str
    similarity: float


def compute_user_map(reg: Registry, bank: Bank) -> UserMap:
    """The map of all users with a profile for the bank's task by the bank's embedder, and of the bank's anchors.

    The two directions are the first principal components of the unit profiles, computed from their covariance. The
    largest coordinate of each direction is made positive, so the same profiles give the same map. Raises IntegrityFault
    if profiles differ in length.
    """
    import numpy as np

    from mta_cli.pipeline.data.profiles import profile_matrix

    middle, directions, share = _principal_components(reg, bank)
    anchors = reg.banks.anchors(bank.id)
    number = {anchor.user_id: n for n, anchor in enumerate(anchors) if anchor.user_id is not None}
    # the anchors' users with a profile, and their profiles [known, width]
    owners, marks = profile_matrix(reg, bank.task, bank.embedder, list(number))
    known = np.array([number[owner] for owner in owners], np.int16)  # indices into `anchors`
    ids, places, nearest = list[int](), [np.zeros((0, 2), np.float32)], [np.zeros(0, np.int16)]
    for users, rows in _profile_batches(reg, bank):
        ids += users
        places.append(((rows - middle) @ directions).astype(np.float32))
        nearest.append(known[np.argmax(rows @ marks.T, axis=1)] if len(known) else np.full(len(users), -1, np.int16))
    found = np.concatenate(nearest)
    counts = np.bincount(found[found >= 0], minlength=len(anchors))
    at = dict(zip(known.tolist(), ((marks - middle) @ directions).tolist() if len(known) else [], strict=True))
    landmarks = tuple(
        MapAnchor(anchor, (at[n][0], at[n][1]) if n in at else None, int(counts[n])) for n, anchor in enumerate(anchors)
    )
    return UserMap(np.array(ids, np.int64), np.concatenate(places), share, landmarks, found)


def find_similar_users(reg: Registry, bank: Bank, user_id: int, count: int = 8) -> list[SimilarUser]:
    """The `count` users with the most similar profiles, most similar first; empty for a user without a profile."""
    import numpy as np

    from mta_cli.pipeline.data.profiles import profile_matrix

    _, own = profile_matrix(reg, bank.task, bank.embedder, [user_id])
    if not len(own):
        return []
    best: list[tuple[float, int]] = []
    for users, rows in _profile_batches(reg, bank, width=own.shape[1]):
        alike = rows @ own[0]  # [users]
        first = np.argsort(-alike, kind="stable")[: count + 1].tolist()  # one more, because the user may be among them
        best += [(float(alike[row]), users[row]) for row in first if users[row] != user_id]
        best = sorted(best, key=lambda pair: (-pair[0], pair[1]))[:count]
    return [SimilarUser(other, reg.users.by_id(other).name, alike) for alike, other in best]


def _principal_components(reg: Registry, bank: Bank) -> tuple[NDArray[np.float32], NDArray[np.float32], Point]:
    """The mean profile [width], the two main directions around it [width, 2], and their shares of the variance."""
    import numpy as np

    total: NDArray[np.float64] | None = None
    square, count = np.zeros((0, 0)), 0
    for users, rows in _profile_batches(reg, bank):
        if total is None:
            total, square = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        count += len(users)
        total += rows.sum(axis=0, dtype=np.float64)
        square += rows.T @ rows
    if total is None or not len(total):
        return np.zeros(0, np.float32), np.zeros((0, 2), np.float32), (0.0, 0.0)
    middle = total / count
    values, vectors = np.linalg.eigh(square / count - np.outer(middle, middle))  # ascending
    values, vectors = np.clip(values[::-1], 0, None)[:2], vectors[:, ::-1][:, :2]  # [<= 2], [width, <= 2]
    vectors = vectors * np.where(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], 0) < 0, -1.0, 1.0)
    directions = np.zeros((len(total), 2))
    directions[:, : vectors.shape[1]] = vectors
    variance = float(max(np.trace(square) / count - middle @ middle, 1e-12))
    first, second = (*(min(1.0, float(value) / variance) for value in values), 0.0)[:2]
    return middle.astype(np.float32), directions.astype(np.float32), (first, second)


def _profile_batches(
    reg: Registry, bank: Bank, width: int | None = None
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Batches of user ids and unit profiles [users, width]. Raises IntegrityFault when profiles differ in length."""
    import numpy as np

    from mta_cli.pipeline.data.profiles import normalise_rows

    for page in reg.profiles.iter_profile_totals(bank.task, bank.embedder, PROFILE_BATCH):
        lengths = {len(total) // 4 for _, total in page} | ({width} if width is not None else set())
        if len(lengths) != 1:
            raise IntegrityFault(
                f"The stored profiles of task {bank.task} differ in length", hint=Command("restore", "FILE")
            )
        width = lengths.pop()
        sums = np.frombuffer(b"".join(total for _, total in page), dtype="<f4").reshape(len(page), -1)
        yield [user_id for user_id, _ in page], normalise_rows(sums)
