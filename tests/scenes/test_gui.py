"""Generated screens: a ScreenSpot file whose boxes hold what they name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn import scenes
from mmattn.eval.referring import load_targets
from mmattn.scenes.gui import AREA, ASKED, BAR, RATIOS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> scenes.ScreenSet:
    return scenes.screens(root=tmp_path_factory.mktemp("screens"), count=len(RATIOS))


def test_ten_aspect_ratios(made: scenes.ScreenSet) -> None:
    sizes = []
    for path in sorted(made.images.iterdir()):
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert len(sizes) == len(RATIOS) == len(set(sizes))
    for (width, height), (across, down) in zip(sizes, RATIOS, strict=True):
        assert width / height == pytest.approx(across / down, rel=0.01)
        assert width * height == pytest.approx(AREA, rel=0.01)


def test_the_file_is_read_as_screenspot_and_boxes_hold_something(made: scenes.ScreenSet) -> None:
    targets = load_targets("screenspot", made.targets).targets
    assert {one.kind for one in targets} == {"text", "icon"}
    assert len({(one.image, one.query) for one in targets}) == len(targets)
    for name in {one.image for one in targets}:
        mine = [one for one in targets if one.image == name]
        assert 1 <= len(mine) <= ASKED
        with Image.open(made.images / name) as picture:
            pixels = np.asarray(picture).astype(int)
        ground = pixels[-1, -1]
        for one in mine:
            left, top, right, bottom = map(int, one.box)
            assert 0 <= left < right <= pixels.shape[1]
            assert BAR <= top < bottom <= pixels.shape[0]
            drawn = np.abs(pixels - ground).sum(-1) > 60
            assert drawn[top:bottom, left:right].mean() > 0.02
            # Nothing of it sticks out: a rim of two pixels around the box is empty.
            rim = drawn[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2].copy()
            rim[2 : 2 + bottom - top, 2 : 2 + right - left] = False
            assert not rim.any()


def test_the_same_seed_gives_the_same_targets(made: scenes.ScreenSet, tmp_path: Path) -> None:
    again = scenes.screens(root=tmp_path, count=len(RATIOS))
    assert again.targets.read_text() == made.targets.read_text()
    other = scenes.screens(root=tmp_path, seed=3, count=2)
    assert json.loads(other.targets.read_text()) != json.loads(again.targets.read_text())[: 2 * ASKED]
    with pytest.raises(ValueError, match="at least 1 screen"):
        scenes.screens(root=tmp_path, count=0)
