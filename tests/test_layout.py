"""Image tokens and original pixels: where tokens sit, and which pixels each covers (invariant 9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mmattn
from mmattn.adapters import Sample
from mmattn.adapters.layout import Affine, View
from mmattn.adapters.text import image_starts
from mmattn.errors import MmattnError
from tests.tiny import tiny_llava

SIDES = st.integers(8, 700)
CROPPING = mmattn.wrap(*tiny_llava(size=112))
PADDING = mmattn.wrap(*tiny_llava(size=112, pad=True))


def _gradient(width: int, height: int) -> Image.Image:
    """A picture whose red is x and whose green is y."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width * 255, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height * 255)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], -1).round().astype(np.uint8))


def _cells_by_processor(vlm: mmattn.VLM, picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """What the real processor shows in each patch: mean (x, y) in original pixels, and whether it is all picture."""
    pixels = vlm.adapter.prepare([Sample((picture,), "q")])[0].pixels[0].values
    settings_ = vlm.processor.image_processor
    mean, std = (torch.tensor(one)[:, None, None] for one in (settings_.image_mean, settings_.image_std))
    colours = (pixels * std + mean).unfold(1, 14, 14).unfold(2, 14, 14)
    whole = (colours[2] > 0.99).all(-1).all(-1).numpy()
    centres = colours[:2].mean((-1, -2)).numpy()
    return np.stack([centres[0] * picture.width, centres[1] * picture.height], -1), whole


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
@pytest.mark.parametrize("vlm", [CROPPING, PADDING], ids=["crop", "pad"])
def test_cell_centres_agree_with_what_the_processor_shows(vlm: mmattn.VLM, width: int, height: int) -> None:
    picture = _gradient(width, height)
    view = vlm.adapter.prepare([Sample((picture,), "q")])[0].layout.images[0].views[0]
    shown, whole = _cells_by_processor(vlm, picture)
    for row, column in np.argwhere(whole):
        x, y = view.to_pixels.point(column + 0.5, row + 0.5)
        # The picture's own edges are flattened by resizing filters; half a cell is the scale that matters.
        slack_x = 2 * width / 255 + 0.12 * view.to_pixels.scale_x
        slack_y = 2 * height / 255 + 0.12 * view.to_pixels.scale_y
        assert abs(shown[row, column, 0] - x) < slack_x
        assert abs(shown[row, column, 1] - y) < slack_y


@pytest.mark.parametrize("vlm", [CROPPING, PADDING], ids=["crop", "pad"])
@pytest.mark.parametrize("size", [(112, 112), (640, 480), (300, 900), (1200, 200), (37, 41), (60, 400)])
@pytest.mark.parametrize("where", [(0.0, 0.0), (-0.32, 0.2), (0.4, -0.38)])
def test_a_mark_lights_up_at_its_place(
    vlm: mmattn.VLM, size: tuple[int, int], where: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a vision tower that does not mix patches, only the marked cells change their attention score."""
    for layer in vlm.model.model.vision_tower.encoder.layers:
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda hidden_states, *_args, **_kwargs: (0 * hidden_states, None)
        )
    width, height = size
    x, y = width / 2 + where[0] * min(size), height / 2 + where[1] * min(size)
    side = max(2.0, min(size) * 0.12)
    plain = Image.new("RGB", size, (90, 120, 100))
    marked = np.asarray(plain).copy()
    marked[int(y - side / 2) : int(y + side / 2) + 1, int(x - side / 2) : int(x + side / 2) + 1] = (255, 20, 250)

    def score(picture: Image.Image) -> np.ndarray:
        heat = vlm.attend(picture, "where?", layers=0).heatmap()
        return np.log(np.maximum(heat, 1e-30))

    change = score(Image.fromarray(marked)) - score(plain)
    covered = vlm.attend(plain, "where?", layers=0).heatmap() > 0
    change = np.where(covered, np.abs(change - np.median(change[covered])), 0)
    top_y, top_x = (axis.mean() for axis in np.nonzero(change > 0.999 * change.max()))
    scale = vlm.attend(plain, "where?").layout.images[0].views[0].to_pixels
    assert abs(top_x - x) < scale.scale_x + side / 2
    assert abs(top_y - y) < scale.scale_y + side / 2
    assert change.shape == (height, width)


def test_real_llava_configuration_gives_576_tokens_and_24_x_24_cells() -> None:
    vlm = mmattn.wrap(*tiny_llava(size=336))
    layout = vlm.adapter.prepare([Sample((Image.new("RGB", (640, 480)),), "q")])[0].layout
    view = layout.images[0].views[0]
    assert (view.rows, view.columns, len(layout.image_tokens)) == (24, 24, 576)
    # 640 x 480 -> 448 x 336, of which columns 56..392 are kept: 80 pixels cut on both sides of the original.
    assert view.to_pixels == Affine(20.0, 20.0, 80.0, 0.0)
    assert vlm.attend(Image.new("RGB", (640, 480)), "q").heatmap()[:, :80].max() == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=0, max_size=3), st.text(min_size=1, max_size=40))
def test_spans_hold_exactly_the_image_tokens(sizes: list[tuple[int, int]], words: str) -> None:
    prompt = f"q {words}".replace("<image>", "")
    sample = Sample(tuple(Image.new("RGB", size) for size in sizes), prompt, "yes indeed")
    prepared = CROPPING.adapter.prepare([sample])[0]
    places = [i for i, token in enumerate(prepared.ids.tolist()) if token == CROPPING.adapter.image_token_id]
    assert prepared.layout.image_tokens == places
    assert len(places) == 64 * len(sizes)
    assert prepared.layout.length == len(prepared.ids) == len(prepared.offsets)
    assert CROPPING.adapter.tokenizer.decode(prepared.ids[prepared.layout.prompt_length :]) == " yes indeed"


def test_tokens_equal_the_processors_own(pictures: list[Any]) -> None:
    for images in ([], pictures[:1], pictures[:3]):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": "what is this?"}]
        text = CROPPING.processor.apply_chat_template([{"role": "user", "content": content}])
        expected = CROPPING.processor(images=images or None, text=text, return_tensors="pt")
        got = CROPPING.adapter.prepare([Sample(tuple(images), "what is this?")])[0]
        assert got.ids.tolist() == expected["input_ids"][0].tolist()
        if images:
            assert torch.equal(torch.stack([one.values for one in got.pixels]), expected["pixel_values"])


@given(st.integers(1, 60), st.integers(1, 9), st.floats(0.5, 40), st.floats(-30, 30), st.booleans())
@settings(deadline=None)
def test_spreading_keeps_constants_and_leaves_the_outside_empty(
    pixels: int, cells: int, scale: float, offset: float, smooth: bool
) -> None:
    view = View(0, cells, cells, Affine(scale, scale, offset, offset))
    spread = view.to_image(np.full((cells, cells), 3.0, dtype=np.float32), (pixels, pixels), smooth)
    centre = (np.arange(pixels) + 0.5 - offset) / scale
    inside = (centre >= 0) & (centre < cells)
    np.testing.assert_allclose(spread, 3.0 * np.outer(inside, inside), rtol=1e-5)


def test_runs_that_do_not_fit_are_refused() -> None:
    assert image_starts([1, 9, 9, 9, 9, 2], 9, [2, 2]) == [1, 3]
    with pytest.raises(MmattnError, match="holds 3 image tokens"):
        image_starts([9, 9, 9], 9, [2])
    with pytest.raises(MmattnError, match="not consecutive"):
        image_starts([9, 1, 9], 9, [2])
