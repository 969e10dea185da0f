"""Places names beside the points of a chart with little overlap of names, points and whiskers.

A greedy method: the most crowded point chooses first, among places around it. Boxes are [left, bottom, right, top] in
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DISTANCES = (7, 13, 21, 31, 43, 57, 73)  # pixels between a point and its name; all but the nearest get a line
DIRECTIONS = 16
# The costs of a place: for each pixel of another box that it covers, each pixel outside the frame, and each pixel
# between name and point.
OVERLAP_COST, OUTSIDE_COST, DISTANCE_COST = 6.0, 40.0, 2.5


@dataclass(frozen=True)
class Point:
    """A named point in the axes' own units; `low` and `high` are the ends of its whisker."""

    name: str
    x: float
    y: float
    low: float
    high: float
    strong: bool = False


def write_labels(axes: Axes, points: Sequence[Point], *, colour: str, line: str, strong: str) -> None:
    """Write every point's name. The figure must have its final layout, since places are computed in pixels."""
    from matplotlib.text import Text

    if not points:
        return
    at = axes.transData.transform([(point.x, point.y) for point in points])  # [points, 2]
    ends = np.sort(
        [axes.transData.transform([(point.x, point.low), (point.x, point.high)])[:, 1] for point in points], axis=1
    )
    whiskers = np.column_stack((at[:, 0] - 1.5, ends[:, 0], at[:, 0] + 1.5, ends[:, 1]))
    taken = np.concatenate((np.hstack((at - 5, at + 5)), whiskers))
    frame = np.array([axes.get_window_extent().padded(-2).extents])
    crowding = (1 / (20 + np.linalg.norm(at[:, None] - at, axis=2))).sum(axis=1)
    leader = {"arrowstyle": "-", "color": line, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    for index in np.argsort(-crowding, kind="stable"):
        point = points[index]
        label = axes.annotate(
            point.name,
            (point.x, point.y),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold" if point.strong else "normal",
            color=strong if point.strong else colour,
            arrowprops=leader,
        )
        label.set_in_layout(False)
        extent = Text.get_window_extent(label)  # an annotation's own extent includes its line
        width, height = extent.width + 3, extent.height + 1
        boxes, distances = _candidates(at[index], width, height)
        outside = width * height - _overlaps(boxes, frame)
        costs = OVERLAP_COST * _overlaps(boxes, taken) + OUTSIDE_COST * outside + DISTANCE_COST * distances
        best = np.argmin(costs)
        taken = np.concatenate((taken, boxes[best, None]))
        label.xyann = tuple(((boxes[best, :2] + boxes[best, 2:]) / 2 - at[index]) * 72 / axes.figure.dpi)
        if distances[best] == DISTANCES[0] and label.arrow_patch is not None:
            label.arrow_patch.set_visible(False)


def _candidates(at: Floats, width: float, height: float) -> tuple[Floats, Floats]:
    """The places of a name in every direction [places, 4], nearest first, and their distances [places]."""
    distances = np.repeat(DISTANCES, DIRECTIONS).astype(float)
    angles = np.tile(2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS, len(DISTANCES))
    ways = np.column_stack((np.cos(angles), np.sin(angles)))
    half = np.array([width, height]) / 2
    middles = at + distances[:, None] * ways + half * np.clip(1.5 * ways, -1, 1)
    return np.hstack((middles - half, middles + half)), distances


def _overlaps(boxes: Floats, others: Floats) -> Floats:
    """The area of each box [boxes] that `others` cover, summed over them."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    areas: Floats = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    return areas
