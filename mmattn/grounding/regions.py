"""From a grid of cells to boxes: threshold, connected regions, confidence, decision.

Regions are found on the grid of cells. Blowing the grid up to pixels first, as the public code of TAG does, gives the
same boxes: a cell's pixels are connected to each other, and two cells touch exactly when their pixels do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmattn.adapters import View
from mmattn.grounding.result import Box, Point

_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Found:
    """Boxes of one grid: see `Grounding`."""

    boxes: tuple[Box, ...]
    scores: tuple[float, ...]
    peak: Point


def normalised(cells: NDArray[np.float32], view: View, size: tuple[int, int]) -> NDArray[np.float32]:
    """`cells` (rows, columns) divided by their maximum, cells that show nothing of the picture (padding) set to 0.

    All 0 where no cell inside the picture is above 0. `size` is (W, H) of the original.
    """
    inside = _overlaps(view.rows, view.to_pixels.scale_y, view.to_pixels.offset_y, size[1])[:, None]
    inside = inside & _overlaps(view.columns, view.to_pixels.scale_x, view.to_pixels.offset_x, size[0])[None, :]
    kept = np.where(inside, cells, 0).astype(np.float32)
    top = float(kept.max(initial=0.0))
    return kept / np.float32(top) if top > 0 else np.zeros_like(kept)


def find(cells: NDArray[np.float32], view: View, size: tuple[int, int], threshold: float) -> Found:
    """Boxes of the regions of `cells` (rows, columns; normalised, not all 0) that reach `threshold`.

    Regions are 8-connected. A box's score is the strongest cell inside the box, its own region's or not. Boxes are
    sorted by score, then area, then reading order; they are cut at the picture's edge. `size` is (W, H).
    """
    labels, count = ndimage.label(cells >= threshold, structure=_EIGHT)
    ranked = []
    for rows, columns in ndimage.find_objects(labels, count):
        box = _pixels(view, columns.start, rows.start, columns.stop, rows.stop, size)
        area = (box[2] - box[0]) * (box[3] - box[1])
        ranked.append((float(cells[rows, columns].max()), area, box))
    ranked.sort(key=lambda one: one[:2], reverse=True)  # stable: equal ones stay in reading order
    row, column = divmod(int(cells.argmax()), view.columns)
    peak = centre(_pixels(view, column, row, column + 1, row + 1, size))
    return Found(tuple(box for _, _, box in ranked), tuple(score for score, _, _ in ranked), peak)


def centres(view: View, size: tuple[int, int]) -> NDArray[np.float64]:
    """(x, y) of the middle of each cell's part inside the picture: (cells, 2); NaN for cells in the padding."""
    points = np.full((view.rows * view.columns, 2), np.nan)
    for index in range(len(points)):
        row, column = divmod(index, view.columns)
        box = _pixels(view, column, row, column + 1, row + 1, size)
        if box[0] < box[2] and box[1] < box[3]:
            points[index] = centre(box)
    return points


def centre(box: Box) -> Point:
    """(x, y) in the middle of an XYXY box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _overlaps(cells: int, scale: float, offset: float, length: int) -> NDArray[np.bool_]:
    """Which cells along one axis lie at least partly in 0..length."""
    edges = np.arange(cells + 1) * scale + offset
    return np.asarray((edges[1:] > 0) & (edges[:-1] < length))


def _pixels(view: View, left: int, top: int, right: int, bottom: int, size: tuple[int, int]) -> Box:
    """The box of grid corners (left, top) to (right, bottom), cut to the picture."""
    x0, y0 = view.to_pixels.point(left, top)
    x1, y1 = view.to_pixels.point(right, bottom)
    width, height = map(float, size)
    return (min(max(x0, 0.0), width), min(max(y0, 0.0), height), max(min(x1, width), 0.0), max(min(y1, height), 0.0))
