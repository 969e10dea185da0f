"""Places names beside the points of a chart with little overlap of names, points and whiskers.

A greedy method: the most crowded point chooses first, among places around it. Works in pixels of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DISTANCES = (7, 13, 21, 31, 43, 57, 73)  # pixels between a point and the nearest edge of its name
DIRECTIONS = 16
MIN_LEADER_GAP = 9  # a name farther away gets a line to its point
# What it costs to cover a pixel of text or of a line, to leave the frame by one, to be one farther from the point; and
# how much of that a line to a name costs that crosses something.
TEXT_COST, LINE_COST, OUTSIDE_COST, DISTANCE_COST, CROSSING_SHARE = 6.0, 1.5, 40.0, 2.5, 1.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap_area(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


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
    extent = axes.get_window_extent()
    frame = Box(extent.x0 + 2, extent.y0 + 2, extent.x1 - 2, extent.y1 - 2)
    at = {point: _pixels(axes, point.x, point.y) for point in points}
    covered = [(box, weight) for point in points for box, weight in _point_boxes(axes, point)]
    for point in sorted(points, key=lambda point: -_crowding(point, at)):
        width, height = _extent(axes, point)
        box = min(_candidate_boxes(at[point], width, height), key=lambda place: _cost(place, at[point], covered, frame))
        covered.append((box, TEXT_COST))
        covered += [(dot, LINE_COST) for dot in _leader_boxes(at[point], box)]
        _write(axes, point, at[point], box, (strong if point.strong else colour, line))


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    found = axes.transData.transform((x, y))
    return float(found[0]), float(found[1])


def _point_boxes(axes: Axes, point: Point) -> Iterator[tuple[Box, float]]:
    """The boxes of a point's marker and whisker."""
    x, y = _pixels(axes, point.x, point.y)
    ends = sorted((_pixels(axes, point.x, point.low)[1], _pixels(axes, point.x, point.high)[1]))
    yield Box(x - 5, y - 5, x + 5, y + 5), TEXT_COST
    yield Box(x - 1.5, ends[0], x + 1.5, ends[1]), LINE_COST * 2


def _crowding(point: Point, at: dict[Point, tuple[float, float]]) -> float:
    """A measure of how near the other points are."""
    x, y = at[point]
    return sum(1 / (20 + math.hypot(x - other[0], y - other[1])) for other in at.values())


def _extent(axes: Axes, point: Point) -> tuple[float, float]:
    """Width and height of a name in pixels."""
    probe = axes.text(point.x, point.y, point.name, fontsize=8, fontweight="bold" if point.strong else "normal")
    box = probe.get_window_extent()
    probe.remove()
    return float(box.width) + 3, float(box.height) + 1


def _candidate_boxes(at: tuple[float, float], width: float, height: float) -> Iterator[Box]:
    """The candidate places of a name, in every direction, nearest first."""
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            x = at[0] + distance * across + width / 2 * max(-1.0, min(1.0, across * 1.5))
            y = at[1] + distance * up + height / 2 * max(-1.0, min(1.0, up * 1.5))
            yield Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _gap(at: tuple[float, float], box: Box) -> float:
    """The distance between a point and the nearest edge of its name."""
    x, y = min(max(at[0], box.left), box.right), min(max(at[1], box.bottom), box.top)
    return math.hypot(x - at[0], y - at[1])


def _leader_boxes(at: tuple[float, float], box: Box) -> list[Box]:
    """The line from a point to its name as small boxes; empty when the name is near."""
    gap = _gap(at, box)
    if gap <= MIN_LEADER_GAP:
        return []
    across, up = (box.left + box.right) / 2 - at[0], (box.bottom + box.top) / 2 - at[1]
    length = math.hypot(across, up)
    steps = [distance / length for distance in range(8, int(gap), 4)]
    return [_dot(at[0] + across * step, at[1] + up * step) for step in steps]


def _dot(x: float, y: float) -> Box:
    return Box(x - 2, y - 2, x + 2, y + 2)


def _cost(box: Box, at: tuple[float, float], covered: Sequence[tuple[Box, float]], frame: Box) -> float:
    """The cost of a place: weighted overlap, area outside the frame, and distance to the point."""
    way = [(dot, CROSSING_SHARE) for dot in _leader_boxes(at, box)]
    over = sum(
        mine.overlap_area(other) * share * weight for mine, share in [(box, 1.0), *way] for other, weight in covered
    )
    return over + OUTSIDE_COST * (box.area - box.overlap_area(frame)) + DISTANCE_COST * _gap(at, box)


def _write(axes: Axes, point: Point, at: tuple[float, float], box: Box, colours: tuple[str, str]) -> None:
    """Draw the name in its box, with a line to the point when it is far."""
    scale = 72 / axes.figure.dpi
    middle = ((box.left + box.right) / 2 - at[0], (box.bottom + box.top) / 2 - at[1])
    line = {"arrowstyle": "-", "color": colours[1], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    label = axes.annotate(
        point.name,
        (point.x, point.y),
        (middle[0] * scale, middle[1] * scale),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold" if point.strong else "normal",
        color=colours[0],
        arrowprops=line if _leader_boxes(at, box) else None,
    )
    label.set_in_layout(False)
