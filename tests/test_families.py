"""The contract that every adapter keeps; a new family gets these tests by being listed in `tests.tiny.FAMILIES`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Sample
from mmattn.attention import NAME, RowCapture
from tests.test_generate import decoder_calls
from tests.tiny import FAMILIES

PROMPTS = ["what?", "a longer question this time", "x", "is it?", "describe the image"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param]())


def _inputs(vlm: mmattn.VLM, images: list[Any], prompts: list[str]) -> dict[str, torch.Tensor]:
    """A left-padded batch as a user of plain transformers makes it; `images` holds a list per prompt."""
    texts = []
    for row, prompt in zip(images, prompts, strict=True):
        content = [*({"type": "image"} for _ in row), {"type": "text", "text": prompt}]
        texts.append(vlm.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    vlm.processor.tokenizer.padding_side = "left"
    flat = [image for row in images for image in row]
    return dict(vlm.processor(images=flat, text=texts, padding=True, return_tensors="pt"))


def test_tokens_and_pixels_equal_the_processors_own(family: mmattn.VLM, pictures: list[Any]) -> None:
    for images in (pictures[:1], pictures[:3], pictures[3:]):
        expected = _inputs(family, [images], ["what is this?"])
        got = family.adapter.prepare([Sample(tuple(images), "what is this?")])[0]
        assert got.ids.tolist() == expected["input_ids"][0].tolist()
        places = (got.ids == family.adapter.image_token_id).nonzero().flatten().tolist()
        assert got.layout.image_tokens == places
        cells = [cell for image in got.layout.images for view in image.views for cell in view.tokens]
        assert len(set(cells)) == len(cells)
        assert set(cells) <= set(places)


def test_greedy_equals_transformers_generate(family: mmattn.VLM, pictures: list[Any]) -> None:
    for images in [[one] for one in pictures] + [pictures[:2]]:
        inputs = _inputs(family, [images], ["what?"])
        ids = family.model.generate(**inputs, max_new_tokens=10, do_sample=False, eos_token_id=2, pad_token_id=0)
        expected = [token for token in ids[0, inputs["input_ids"].shape[1] :].tolist() if token != 2]
        got = family.generate([images], ["what?"], max_new_tokens=10, stop_token_ids=[2])[0]
        assert list(got.token_ids) == expected


def test_a_batch_is_its_samples(family: mmattn.VLM, pictures: list[Any]) -> None:
    images = [pictures[0], [pictures[1], pictures[3]], None, pictures[2], pictures[4]]
    settings: dict[str, Any] = {"max_new_tokens": 6, "stop_token_ids": []}
    alone = [family.generate([one], [text], **settings)[0] for one, text in zip(images, PROMPTS, strict=True)]
    assert family.generate(images, PROMPTS, **settings) == alone
    order = [3, 0, 4, 2, 1]
    again = family.generate([images[i] for i in order], [PROMPTS[i] for i in order], batch_size=2, **settings)
    assert again == [alone[i] for i in order]


def test_contrast_in_one_batch(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
    alone = [
        family.generate([one], [text], method="vcd", **settings)[0] for one, text in zip(pictures, PROMPTS, strict=True)
    ]
    with decoder_calls(family) as calls:
        assert family.generate(pictures, PROMPTS, method="vcd", **settings) == alone
    assert calls == [10] * 5
    plain = family.generate(pictures, PROMPTS, **settings)
    assert family.generate(pictures, PROMPTS, method=mmattn.VCD(alpha=0, beta=0), **settings) == plain
    assert family.generate(pictures, PROMPTS, method=mmattn.VCD(3, 0, 999), **settings) != plain


def test_nothing_asked_nothing_changed(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = _inputs(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    plain = family.model(**inputs).logits
    with family.adapter.session():
        assert family.model.config.text_config._attn_implementation == NAME
        assert torch.equal(family.model(**inputs).logits, plain)
    capture = RowCapture(torch.full((3, 1), -1))
    with family.adapter.session(capture):
        assert torch.equal(family.model(**inputs).logits, plain)
    assert len(capture.weights) == len(family.adapter.attention_layers)
    assert family.model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", FAMILIES)
def test_captured_rows_equal_eager(name: str, pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*FAMILIES[name](spread=0.1))
    for images in ([pictures[1]], [pictures[0], pictures[3]]):
        inputs = _inputs(vlm, [images], ["where is it?"])
        vlm.model.set_attn_implementation({"text_config": "eager"})
        with torch.no_grad():
            maps = torch.stack(vlm.model(**inputs, output_attentions=True).attentions)[:, 0]
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
        expected = maps[..., -1:, :][..., inputs["input_ids"][0] == vlm.adapter.image_token_id]
        got = vlm.attend(images, "where is it?")
        torch.testing.assert_close(got.weights, expected, atol=1e-6, rtol=0)


def test_rows_of_a_padded_batch_equal_eager(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = _inputs(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    family.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        full = family.model(**inputs, output_attentions=True).attentions[0]
    family.model.set_attn_implementation({"text_config": "sdpa"})
    capture = RowCapture(torch.tensor([[-1, -3]] * 3), layers=(0,))
    with torch.inference_mode(), family.adapter.session(capture):
        family.model(**inputs)
    torch.testing.assert_close(capture.weights[0], full[:, :, [-1, -3]], atol=1e-6, rtol=0)


def _gradient(width: int, height: int) -> Image.Image:
    """Red is x, green is y."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width * 255, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height * 255)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], -1).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(112, 112), (400, 300), (200, 610), (700, 150), (97, 131), (60, 64)])
def test_a_mark_changes_the_tokens_that_cover_it(family: mmattn.VLM, size: tuple[int, int]) -> None:
    """In each view, the features of the cell that holds the mark's centre change more than those far from it."""
    width, height = size
    plain = Image.new("RGB", size, (100, 120, 110))
    side = max(4, min(size) // 8)
    for where in ((0.0, 0.0), (-0.3, 0.3), (0.3, -0.25)):
        x, y = int(width / 2 + where[0] * min(size)), int(height / 2 + where[1] * min(size))
        pixels = np.asarray(plain).copy()
        pixels[y - side // 2 : y + side // 2 + 1, x - side // 2 : x + side // 2 + 1] = (255, 0, 255)
        samples = [Sample((one,), "q") for one in (plain, Image.fromarray(pixels))]
        before, after = family.adapter.prepare(samples)
        # What the vision tower is shown, cell by cell: its own mixing has no place in a test of geometry.
        change = _shown(family, after.pixels[0]) - _shown(family, before.pixels[0])
        for view, cells in zip(before.layout.images[0].views, _split(family, before, change), strict=True):
            row, column = divmod(int(np.abs(cells).argmax()), view.columns)
            left, top = view.to_pixels.point(column, row)
            right, bottom = view.to_pixels.point(column + 1, row + 1)
            assert left - side / 2 - 1 <= x <= right + side / 2 + 1
            assert top - side / 2 - 1 <= y <= bottom + side / 2 + 1


def _shown(vlm: mmattn.VLM, pixels: Any) -> np.ndarray:
    """The processed picture as (views, rows, columns) of mean values per patch, or per merged patch for Qwen."""
    values = pixels.values.double().numpy()
    if pixels.grid is not None:
        frames, rows, columns = pixels.grid
        # Patches come merged-cell by merged-cell: 4 consecutive ones make one image token.
        return values.reshape(frames, rows // 2, columns // 2, 4, -1).mean((0, 3, 4))[None]
    values = values.reshape(-1, *values.shape[-3:])
    patch = vlm.adapter.patch  # type: ignore[attr-defined]
    tiles, channels, height, width = values.shape
    return values.reshape(tiles, channels, height // patch, patch, width // patch, patch).mean((1, 3, 5))


def _split(vlm: mmattn.VLM, prepared: Any, shown: np.ndarray) -> list[np.ndarray]:
    """`shown` arranged as the views of the layout, padding cut away as the model does."""
    views = prepared.layout.images[0].views
    if len(views) == 1:
        return [shown[0]]
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    width, height = prepared.pixels[0].size
    grid = get_anyres_image_grid_shape((height, width), vlm.model.config.image_grid_pinpoints, 56)
    side = shown.shape[-1]
    stitched = shown[1:].reshape(*grid, side, side).transpose(0, 2, 1, 3).reshape(grid[0] * side, grid[1] * side)
    kept = unpad_image(torch.tensor(stitched)[None], (height, width))[0].numpy()
    assert kept.shape == (views[1].rows, views[1].columns)
    return [shown[0], kept]


@pytest.mark.parametrize("size", [(112, 112), (400, 300), (200, 610), (700, 150), (97, 131)])
def test_heat_maps_have_the_pictures_size_and_peaks_lie_inside(family: mmattn.VLM, size: tuple[int, int]) -> None:
    read = family.attend(_gradient(*size), "where?", rows="prompt")
    assert read.heatmap().shape == size[::-1]
    x, y = read.peak()
    assert 0 <= x <= size[0]
    assert 0 <= y <= size[1]
    assert read.heatmap()[min(int(y), size[1] - 1), min(int(x), size[0] - 1)] > 0


def test_newline_tokens_belong_to_no_cell(pictures: list[Any]) -> None:
    """LLaVA-NeXT ends each row of the tiled view with a learned vector; maps must step over it."""
    vlm = mmattn.wrap(*FAMILIES["llava-next"]())
    for picture in pictures:
        prepared = vlm.adapter.prepare([Sample((picture,), "q")])[0]
        image = prepared.layout.images[0]
        with torch.no_grad():
            features = vlm.adapter.encode(prepared.pixels)[0]
        newline = (features == vlm.model.model.image_newline).all(-1).nonzero().flatten() + image.tokens.start
        cells = {cell for view in image.views for cell in view.tokens}
        assert sorted(set(image.tokens) - cells) == newline.tolist()
        assert len(newline) == image.views[1].rows
