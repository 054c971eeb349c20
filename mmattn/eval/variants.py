"""Pictures made worse in graded steps, to see how much a method loses: noise, blur, brightness, rotation, occlusion.

As R2-Bench does for grounding; the grades are ours. What is drawn at random hangs on the picture's name alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from mmattn.checks import whole
from mmattn.errors import unknown
from mmattn.eval.referring import Box

GRADES = 5
_Random = np.random.Generator


def _noise(picture: Image.Image, amount: float, chance: _Random) -> Image.Image:
    """Gaussian noise with this deviation, in grey levels."""
    pixels: NDArray[np.float64] = np.asarray(picture) + chance.normal(0, amount, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _blur(picture: Image.Image, amount: float, _: _Random) -> Image.Image:
    """Gaussian blur with this deviation, in thousandths of the longer side."""
    return picture.filter(ImageFilter.GaussianBlur(amount * max(picture.size) / 1000))


def _dark(picture: Image.Image, amount: float, _: _Random) -> Image.Image:
    """All values times this factor."""
    return ImageEnhance.Brightness(picture).enhance(amount)


def _rotation(picture: Image.Image, amount: float, _: _Random) -> Image.Image:
    """Turned to the left around its centre, in degrees; corners are filled with grey."""
    return picture.rotate(amount, resample=Image.Resampling.BICUBIC, fillcolor=(127, 127, 127))


def _occlusion(picture: Image.Image, amount: float, chance: _Random) -> Image.Image:
    """Grey squares over this part of a grid of 8 x 8."""
    pixels = np.array(picture)
    rows, columns = (np.linspace(0, side, 9).round().astype(int) for side in pixels.shape[:2])
    for cell in chance.permutation(64)[: round(64 * amount)]:
        row, column = divmod(int(cell), 8)
        pixels[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = 127
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class _Kind:
    change: Callable[[Image.Image, float, _Random], Image.Image]
    amounts: tuple[float, ...]


KINDS: Mapping[str, _Kind] = {
    "noise": _Kind(_noise, (10, 20, 40, 60, 80)),
    "blur": _Kind(_blur, (3, 6, 9, 15, 21)),
    "dark": _Kind(_dark, (0.75, 0.5, 0.35, 0.2, 0.1)),
    "bright": _Kind(_dark, (1.3, 1.6, 2.0, 2.5, 3.0)),
    "rotation": _Kind(_rotation, (5, 10, 15, 20, 30)),
    "occlusion": _Kind(_occlusion, (0.05, 0.1, 0.2, 0.3, 0.4)),
}


@dataclass(frozen=True)
class Variant:
    """One kind of damage at a grade of 1 to 5."""

    kind: str
    grade: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of damage", str(self.kind), KINDS)
        whole("grade", self.grade, 1, GRADES)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.grade}"

    @property
    def amount(self) -> float:
        """How much, in the unit of its kind."""
        return KINDS[self.kind].amounts[self.grade - 1]

    def picture(self, picture: Image.Image, name: str) -> Image.Image:
        """The damaged picture, of the same size; `name` is the picture's own."""
        seed = hashlib.sha256(f"{self.kind} {name}".encode()).digest()
        return KINDS[self.kind].change(picture, self.amount, np.random.default_rng(int.from_bytes(seed[:8], "little")))

    def box(self, box: Box, size: tuple[int, int]) -> Box:
        """Where the box XYXY is then, in a picture of `size` (W, H): its centre turned, its sides as long as before.

        A box around the turned one would be larger, and easier to hit.
        """
        if self.kind != "rotation":
            return box
        angle = math.radians(self.amount)
        x, y = (box[0] + box[2] - size[0]) / 2, (box[1] + box[3] - size[1]) / 2
        x, y = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        half = ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
        x, y = x + size[0] / 2, y + size[1] / 2
        return x - half[0], y - half[1], x + half[0], y + half[1]
