"""Maps over pictures, at the size at which they are looked at."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mmattn.adapters import Affine
from mmattn.adapters import View as Cells
from mmattn.demo.state import LAYER_MAX, View
from mmattn.grounding import Attention, overlay

Heat = NDArray[np.float32]

SMALLEST, LARGEST = 512, 1024


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """`size` (W, H) scaled so that its longer side has 512 to 1024 pixels."""
    longest = max(size)
    scale = min(max(longest, SMALLEST), LARGEST) / longest
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def shown(image: Image.Image) -> Image.Image:
    """The picture at display size."""
    return image.resize(display_size(image.size), Image.Resampling.LANCZOS)


def heat(read: Attention, rows: Sequence[int], view: View, size: tuple[int, int] | None = None) -> Heat:
    """The map (H, W) of the mean of `rows`, in the frame of the original picture, drawn with `size` (W, H) pixels.

    By default with those of the original.
    """
    if view.how != LAYER_MAX:
        return _spread(read, read.grids(rows=list(rows), **view.chosen()), size, view.smooth)
    heads = range(read.weights.shape[1])
    each = [read.grids(layers=view.layer, heads=head, rows=list(rows)) for head in heads]
    strongest: Heat = np.max([_spread(read, grids, size, view.smooth) for grids in each], axis=0)
    return strongest


def _spread(read: Attention, grids: Sequence[Heat], size: tuple[int, int] | None, smooth: bool) -> Heat:
    image = read.layout.images[0]
    target = size or image.size
    across, down = target[0] / image.size[0], target[1] / image.size[1]
    maps = [
        _scaled(one, across, down).to_image(grid, target, smooth) for one, grid in zip(image.views, grids, strict=True)
    ]
    total: Heat = np.sum(maps, axis=0, dtype=np.float32)
    return total


def _scaled(cells: Cells, across: float, down: float) -> Cells:
    old = cells.to_pixels
    return replace(
        cells,
        to_pixels=Affine(old.scale_x * across, old.scale_y * down, old.offset_x * across, old.offset_y * down),
    )


def word_map(image: Image.Image, read: Attention, rows: Sequence[int], view: View) -> Image.Image:
    """The picture, at display size, under the map of `rows`."""
    small = shown(image)
    return overlay(small, heat(read, rows, view, small.size), view.opacity)


def head_maps(
    image: Image.Image, read: Attention, rows: Sequence[int], view: View, side: int = 168
) -> list[tuple[Image.Image, str]]:
    """One small map per head of the chosen layer, each scaled to its own maximum, with its name."""
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    small = image.resize(size, Image.Resampling.LANCZOS)
    found = []
    for head in range(read.weights.shape[1]):
        grids = read.grids(layers=view.layer, heads=head, rows=list(rows))
        found.append((overlay(small, _spread(read, grids, size, view.smooth), view.opacity), f"head {head}"))
    return found


def answers_card(image: Image.Image, prompt: str, answers: Sequence[tuple[str, str]]) -> Image.Image:
    """A card with the picture, the question and each method's answer."""
    figure = Figure(figsize=(9, 1.2 + max(3.2, 0.9 * len(answers))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    left.imshow(shown(image))
    for axes in (left, right):
        axes.set_axis_off()
    figure.suptitle(textwrap.fill(prompt, 90), parse_math=False)
    lines = [f"{method}\n{textwrap.indent(textwrap.fill(text, 58), '  ')}" for method, text in answers]
    right.text(0, 1, "\n\n".join(lines), va="top", fontsize=10, transform=right.transAxes, parse_math=False)
    return rendered(figure)


def rendered(figure: Figure) -> Image.Image:
    """The figure as an RGBA picture."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():  # characters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba()).copy())  # type: ignore[no-untyped-call]
