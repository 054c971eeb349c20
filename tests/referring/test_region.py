"""Regions: pixels, and what every cell holds of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.adapters import Affine, ImageLayout, View
from mmattn.errors import MmattnError
from mmattn.referring import Region

SIZE = (40, 30)


def _cells(weights: Any, view: View) -> Any:
    """The mean over the pixels whose centre a cell holds, pixel by pixel."""
    found = np.zeros((view.rows, view.columns))
    for row in range(view.rows):
        for column in range(view.columns):
            (x0, y0), (x1, y1) = view.to_pixels.point(column, row), view.to_pixels.point(column + 1, row + 1)
            held = [
                float(weights[y, x])
                for y in range(weights.shape[0])
                for x in range(weights.shape[1])
                if x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
            ]
            found[row, column] = sum(held) / len(held) if held else 0
    return found


@pytest.mark.parametrize(
    "view",
    [
        View(0, 3, 4, Affine(10, 10)),
        View(0, 6, 5, Affine(8, 5)),
        View(0, 4, 4, Affine(10, 10, 0, -5)),
        View(0, 2, 2, Affine(7, 9, 11, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["box", "mask", "point", "scribble"])
def test_cells_hold_the_mean_of_their_pixels(view: View, kind: str) -> None:
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[3:20, 5:9] = 7
    given: Any = {
        "box": (3.2, 4, 17, 20.5), "mask": mask, "point": (30.9, 2), "scribble": [(1, 1), (20, 25), (38, 3)]
    }[kind]  # fmt: skip
    region = getattr(Region, kind)(given, SIZE)
    shown = ImageLayout(SIZE, range(view.rows * view.columns), (view,))
    np.testing.assert_allclose(region.cells(shown), _cells(region.weights, view).ravel(), atol=1e-5)


def test_newlines_belong_to_no_place_and_every_view_counts() -> None:
    views = (View(5, 2, 2, Affine(20, 15)), View(9, 3, 4, Affine(10, 10), gap=1))
    shown = ImageLayout(SIZE, range(5, 5 + 4 + 15), views)
    cells = Region.box((0, 0, 10, 10), SIZE).cells(shown)
    assert len(cells) == 19
    assert cells[[0, 4]].tolist() == pytest.approx([1 / 3, 1], abs=0.05)
    assert not cells[[1, 2, 3, *range(5, 19)]].any()
    whole = Region.box((0, 0, 40, 30), SIZE).cells(shown)
    assert whole.tolist() == pytest.approx([1] * 4 + [1, 1, 1, 1, 0] * 3)


def test_cells_smaller_than_a_pixel() -> None:
    view = View(0, 2, 8, Affine(0.5, 1))
    shown = ImageLayout((4, 2), range(16), (view,))
    cells = Region.box((1, 0, 2, 1), (4, 2)).cells(shown).reshape(2, 8)
    assert cells.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0] * 8]


def test_a_box_is_its_mask_and_a_point_falls_off(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[4:21, 3:17] = True
    box = Region.box((3.2, 4, 17, 20.5), SIZE)
    np.testing.assert_array_equal(box.weights, Region.mask(mask, SIZE).weights)
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.save(tmp_path / "mask.png")
    for given in (picture, tmp_path / "mask.png", str(tmp_path / "mask.png")):
        np.testing.assert_array_equal(box.weights, Region.mask(given, SIZE).weights)
    near = Region.point((30.9, 2), SIZE).weights
    far = max(np.hypot(x - 30, y - 2) for x in range(40) for y in range(30))
    for x, y in ((30, 2), (33, 2), (30, 6), (0, 29)):
        distance = np.hypot(x - 30, y - 2) / far
        assert near[y, x] == pytest.approx(np.exp(-(distance**2) / 0.02), abs=1e-6)
    line = Region.scribble([(5, 5), (15, 5)], SIZE).weights
    assert (line[5, 5:16] == 1).all()
    assert line[5, 16] < 1


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("box", (50, 0, 60, 10), "covers nothing"),
        ("box", (10, 10, 10, 20), "covers nothing"),
        ("box", (-9, 3, -1, 10), "covers nothing"),
        ("box", (1, 2, 3), "must be 4 numbers"),
        ("box", 3, "must be 4 numbers"),
        ("box", (1, 2, float("nan"), 3), "finite number"),
        ("point", (40, 3), "covers nothing"),
        ("point", (1,), "must be 2 numbers"),
        ("scribble", [(1, 1)], "two points at least"),
        ("mask", np.zeros((30, 40)), "covers nothing"),
        ("mask", np.ones((40, 30)), "the picture 30 pixels high"),
        ("mask", "missing.png", "Cannot read the mask"),
    ],
)
def test_bad_regions(kind: str, given: Any, message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        getattr(Region, kind)(given, SIZE)
