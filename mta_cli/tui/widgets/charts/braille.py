"""Draws many points as braille characters of 2 × 4 dots, and counts the points of each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DOTS_PER_CELL_X, DOTS_PER_CELL_Y = 2, 4  # dots of a cell
BRAILLE_BASE = 0x2800
DOT_BITS = ((1, 8), (2, 16), (4, 32), (64, 128))  # of Unicode's braille patterns, row by row
LEVELS = 4
MIN_PEAK_COUNT = 8  # the densest cell counts as at least this many when brightness is chosen


@dataclass(frozen=True, eq=False)
class BrailleGrid:
    """Points drawn on a grid of cells: for each cell its braille dots and its number of points."""

    masks: NDArray[np.uint8]  # [height, width]
    counts: NDArray[np.int64]  # [height, width]

    def char(self, x: int, y: int) -> str:
        """The braille character of a cell."""
        return chr(BRAILLE_BASE + int(self.masks[y, x]))

    def density_levels(self) -> NDArray[np.int64]:
        """The density of each cell from 0 (one point in a sparse plot) to 3, on a logarithmic scale; -1 for an empty
        cell.
        """
        most = max(int(self.counts.max(initial=0)), MIN_PEAK_COUNT)
        found = np.floor(LEVELS * np.log1p(self.counts) / np.log1p(most)).astype(int)
        return np.where(self.counts > 0, np.clip(found, 0, LEVELS - 1), -1)


def braille_grid(columns: NDArray[np.int64], rows: NDArray[np.int64], width: int, height: int) -> BrailleGrid:
    """Draw points on a grid of `width` × `height` cells.

    `columns` [points] are their dots from the left, 0 … 2·width - 1; `rows` [points] from the top, 0 … 4·height - 1.
    """
    cells = (rows // DOTS_PER_CELL_Y) * width + columns // DOTS_PER_CELL_X
    bits = np.array(DOT_BITS, np.uint8)[rows % DOTS_PER_CELL_Y, columns % DOTS_PER_CELL_X]
    masks = np.zeros(width * height, np.uint8)
    for bit in np.unique(bits):
        masks[np.unique(cells[bits == bit])] |= bit
    counts = np.bincount(cells, minlength=width * height)
    return BrailleGrid(masks.reshape(height, width), counts.reshape(height, width))
