"""A place in a picture, as a weight of every pixel, and as a weight of every cell that a model sees.

All coordinates are pixels of the upright original, (x, y) from its top left corner.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from mmattn.adapters import ImageLayout
from mmattn.checks import number
from mmattn.errors import MmattnError

# How fast the weight falls with the distance from a point or a scribble, in parts of the largest distance.
SIGMA = 0.1
_Weights = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Region:
    """What a question is about: `weights` (H, W) float32 in 0..1, 1 on the place that is meant.

    Boxes and masks are 1 inside and 0 outside. Around points and scribbles the weight falls as
    exp(-d^2 / (2 sigma^2)), d the distance divided by the largest distance in the picture, sigma 0.1.
    """

    kind: str
    weights: _Weights

    @classmethod
    def box(cls, box: Sequence[float], size: tuple[int, int]) -> Region:
        """The rectangle XYXY of a picture of `size` (W, H): every pixel that it touches.

        Raises:
            MmattnError: it is no box, or lies outside of the picture.
        """
        left, top, right, bottom = _numbers("A box", box, 4)
        weights = np.zeros(size[::-1], dtype=np.float32)
        inside = (slice(max(int(top), 0), int(np.ceil(bottom))), slice(max(int(left), 0), int(np.ceil(right))))
        if left < right and top < bottom and bottom > 0 and right > 0:
            weights[inside] = 1
        return cls("box", _some(weights, f"The box {tuple(box)}"))

    @classmethod
    def mask(cls, mask: Any, size: tuple[int, int]) -> Region:
        """Where `mask` (H, W) is not 0: an array, a picture, or the path of one."""
        if isinstance(mask, (str, os.PathLike)):
            try:
                with Image.open(Path(mask)) as picture:
                    mask = np.asarray(picture.convert("L"))
            except (OSError, ValueError) as error:
                raise MmattnError(f"Cannot read the mask {mask} ({error})", "Give a picture file.") from error
        given = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
        if given.shape != size[::-1] or given.dtype.kind not in "biuf":
            raise MmattnError(
                f"The mask is {given.shape}, the picture {size[1]} pixels high and {size[0]} wide",
                "Give one number per pixel.",
            )
        return cls("mask", _some((given != 0).astype(np.float32), "The mask"))

    @classmethod
    def point(cls, point: Sequence[float], size: tuple[int, int]) -> Region:
        """Around the pixel (x, y)."""
        return cls("point", _near(_drawn([point], size), f"The point {tuple(point)}"))

    @classmethod
    def scribble(cls, points: Sequence[Sequence[float]], size: tuple[int, int]) -> Region:
        """Around the line through `points`."""
        if len(points) < 2:
            raise MmattnError("A scribble needs two points at least", "Write [(x, y), (x, y), ...].")
        return cls("scribble", _near(_drawn(points, size), "The scribble"))

    def cells(self, shown: ImageLayout) -> NDArray[np.float32]:
        """The weight of each image token, 0 for those of no place; of each cell, where tokens are mixed."""
        height, width = self.weights.shape
        assert shown.size == (width, height)
        count = sum(view.rows * view.columns for view in shown.views) if shown.mixed else len(shown.tokens)
        found = np.zeros(count, dtype=np.float32)
        first = 0 if shown.mixed else shown.tokens.start
        for view in shown.views:
            found[[token - first for token in view.tokens]] = view.from_image(self.weights).ravel()
        return found


def _numbers(what: str, given: Any, count: int) -> list[float]:
    try:
        values = list(given)
    except TypeError:
        values = []
    if len(values) != count:
        raise MmattnError(f"{what} must be {count} numbers, not {given!r}", "In pixels of the picture.")
    return [number(what, one, -1e9) for one in values]


def _drawn(points: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels (H, W) on the line through `points`."""
    canvas = Image.new("1", size)
    places = [tuple(int(np.floor(one)) for one in _numbers("A point", point, 2)) for point in points]
    pen = ImageDraw.Draw(canvas)
    pen.point(places[0], 1)
    for start, end in pairwise(places):
        pen.line([start, end], 1)
    return np.asarray(canvas)


def _near(drawn: NDArray[np.bool_], what: str) -> _Weights:
    _some(drawn.astype(np.float32), what)
    distance = ndimage.distance_transform_edt(~drawn)
    top = float(distance.max()) or 1.0
    return np.asarray(np.exp(-((distance / top) ** 2) / (2 * SIGMA**2)), dtype=np.float32)


def _some(weights: _Weights, what: str) -> _Weights:
    if not weights.any():
        height, width = weights.shape
        raise MmattnError(f"{what} covers nothing of the picture", f"It is {width} x {height} pixels.")
    return weights
