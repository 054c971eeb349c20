"""Where the tokens of a picture sit in the sequence, and which pixels of the original picture each one covers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Affine:
    """Axis-aligned map from grid coordinates to pixels of the original picture.

    A cell's corner (column, row) lies at x = scale_x * column + offset_x, y = scale_y * row + offset_y, in pixels of
    the upright original, origin at its top left corner. Negative offsets come from padding.
    """

    scale_x: float
    scale_y: float
    offset_x: float = 0.0
    offset_y: float = 0.0

    def point(self, column: float, row: float) -> tuple[float, float]:
        return self.scale_x * column + self.offset_x, self.scale_y * row + self.offset_y

    def cell(self, x: float, y: float) -> tuple[float, float]:
        """(column, row), fractional, of the pixel coordinates (x, y)."""
        return (x - self.offset_x) / self.scale_x, (y - self.offset_y) / self.scale_y


@dataclass(frozen=True)
class View:
    """One rectangular grid of image tokens, row-major from `start`.

    Attributes:
        start: index of its first token in the unpadded sequence.
        rows, columns: size of the grid.
        to_pixels: from grid coordinates to pixels of the original picture.
        gap: tokens between the end of a row and the next one (newline tokens).
    """

    start: int
    rows: int
    columns: int
    to_pixels: Affine
    gap: int = 0

    @property
    def tokens(self) -> list[int]:
        starts = [self.start + row * (self.columns + self.gap) for row in range(self.rows)]
        return [start + column for start in starts for column in range(self.columns)]

    def tokens_in(self, box: tuple[float, float, float, float]) -> list[int]:
        """Tokens of the cells whose centres lie in `box` (x0, y0, x1, y1) of original pixels; if it holds no centre,
        of the cell at its own.
        """
        left, top = self.to_pixels.cell(box[0], box[1])
        right, bottom = self.to_pixels.cell(box[2], box[3])
        across = [column for column in range(self.columns) if left <= column + 0.5 < right]
        down = [row for row in range(self.rows) if top <= row + 0.5 < bottom]
        if not across or not down:
            column, row = math.floor((left + right) / 2), math.floor((top + bottom) / 2)
            across = [column] if 0 <= column < self.columns else []
            down = [row] if 0 <= row < self.rows else []
        tokens = self.tokens
        return [tokens[row * self.columns + column] for row in down for column in across]

    def shifted(self, by: int) -> View:
        return replace(self, start=self.start + by)

    def to_image(self, cells: NDArray[np.float32], size: tuple[int, int], smooth: bool) -> NDArray[np.float32]:
        """Spread `cells` (rows, columns) over a picture of `size` (W, H): (H, W) float32.

        Each pixel takes the value of the cell that holds its centre, or, if `smooth`, the bilinear interpolation
        between cell centres. Pixels that no cell covers are 0.
        """
        along_x = _spread(size[0], self.columns, self.to_pixels.scale_x, self.to_pixels.offset_x, smooth)
        along_y = _spread(size[1], self.rows, self.to_pixels.scale_y, self.to_pixels.offset_y, smooth)
        spread: NDArray[np.float32] = along_y @ cells.astype(np.float32) @ along_x.T
        return spread

    def from_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean of `pixels` (H, W) in each cell: (rows, columns) float32.

        A cell too small to hold the centre of a pixel takes the pixel that it lies in; a cell outside is 0.
        """
        along_x = _gather(pixels.shape[1], self.columns, self.to_pixels.scale_x, self.to_pixels.offset_x)
        along_y = _gather(pixels.shape[0], self.rows, self.to_pixels.scale_y, self.to_pixels.offset_y)
        means: NDArray[np.float32] = along_y @ pixels.astype(np.float32) @ along_x.T
        return means


@dataclass(frozen=True)
class ImageLayout:
    """One picture of a prompt.

    Attributes:
        size: (W, H) in original pixels.
        tokens: where its image tokens sit in the unpadded sequence, those between rows included.
        views: the grids that show it.
        mixed: an image token is a mixture of cells instead of one; its views then count cells from 0.
    """

    size: tuple[int, int]
    tokens: range
    views: tuple[View, ...]
    mixed: bool = False


@dataclass(frozen=True)
class Layout:
    """Spans of one unpadded sequence: pictures, prompt and answer.

    Attributes:
        length: tokens in all.
        prompt_length: tokens before the answer; equal to `length` without one.
        images: the pictures, in the order of the prompt.
        instruction: tokens that hold the user's words.
        marked: tokens that hold what the user marked.
    """

    length: int
    prompt_length: int
    images: tuple[ImageLayout, ...]
    instruction: range = range(0)
    marked: tuple[int, ...] = ()

    @property
    def system(self) -> range:
        """Tokens before the first picture and the user's words: the template's opening, a system prompt."""
        starts = [image.tokens.start for image in self.images] + [self.instruction.start] * bool(self.instruction)
        return range(min(starts, default=0))

    @property
    def image_tokens(self) -> list[int]:
        return [token for image in self.images for token in image.tokens]

    @property
    def answer(self) -> range:
        return range(self.prompt_length, self.length)


def _spread(pixels: int, cells: int, scale: float, offset: float, smooth: bool) -> NDArray[np.float32]:
    """Weights (pixels, cells) of each cell in each pixel along one axis; rows of uncovered pixels are 0."""
    position = (np.arange(pixels) + 0.5 - offset) / scale
    weights = np.zeros((pixels, cells), dtype=np.float32)
    inside = np.flatnonzero((position >= 0) & (position < cells))
    at = position[inside]
    if not smooth:
        weights[inside, np.minimum(at.astype(np.int64), cells - 1)] = 1
        return weights
    centre = np.clip(at - 0.5, 0, cells - 1)
    low = np.minimum(centre.astype(np.int64), max(cells - 2, 0))
    high = np.minimum(low + 1, cells - 1)
    share = (centre - low).astype(np.float32)
    weights[inside, low] += 1 - share
    weights[inside, high] += share
    return weights


def _gather(pixels: int, cells: int, scale: float, offset: float) -> NDArray[np.float32]:
    """Weights (cells, pixels) of the mean of each cell along one axis; rows of cells outside are 0."""
    weights = _spread(pixels, cells, scale, offset, smooth=False).T
    held = weights.sum(1)
    centre = np.floor((np.arange(cells) + 0.5) * scale + offset).astype(np.int64)
    lone = np.flatnonzero((held == 0) & (centre >= 0) & (centre < pixels))
    weights[lone, centre[lone]] = 1
    means: NDArray[np.float32] = weights / np.maximum(weights.sum(1, keepdims=True), 1)
    return means
