"""The contract that every adapter keeps; a new family gets these tests by being listed in `tests.tiny.FAMILIES`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Affine, Sample
from mmattn.attention import NAME, RowCapture
from mmattn.errors import MmattnError
from tests.stock import eager_maps, implementation, inputs_of, is_t5, new_tokens
from tests.test_generate import decoder_calls
from tests.tiny import FAMILIES

PROMPTS = ["what?", "a longer question this time", "x", "is it?", "describe the image"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param]())


def _several(vlm: mmattn.VLM, images: list[Any]) -> list[Any]:
    """As many of these pictures as the family takes in one prompt."""
    return images[: vlm.adapter.max_images]


def test_tokens_and_pixels_equal_the_processors_own(family: mmattn.VLM, pictures: list[Any]) -> None:
    for images in (pictures[:1], _several(family, pictures[:3]), _several(family, pictures[3:])):
        expected = inputs_of(family, [images], ["what is this?"])
        got = family.adapter.prepare([Sample(tuple(images), "what is this?")])[0]
        start = [0] if is_t5(family) else []
        assert got.ids.tolist() == expected["input_ids"][0].tolist() + start
        places = (got.ids == family.adapter.image_token_id).nonzero().flatten().tolist()
        assert got.layout.image_tokens == places
        if family.adapter.mixed:  # no token is a cell
            continue
        cells = [cell for image in got.layout.images for view in image.views for cell in view.tokens]
        assert len(set(cells)) == len(cells)
        assert set(cells) <= set(places)


def test_greedy_equals_transformers_generate(family: mmattn.VLM, pictures: list[Any]) -> None:
    for images in [[one] for one in pictures] + [_several(family, pictures[:2])]:
        inputs = inputs_of(family, [images], ["what?"])
        ids = new_tokens(family, inputs, max_new_tokens=10, do_sample=False, eos_token_id=2, pad_token_id=0)[0]
        expected = [token for token in ids if token != 2]
        got = family.generate([images], ["what?"], max_new_tokens=10, stop_token_ids=[2])[0]
        assert list(got.token_ids) == expected


def test_a_batch_is_its_samples(family: mmattn.VLM, pictures: list[Any]) -> None:
    images = [pictures[0], _several(family, [pictures[1], pictures[3]]), None, pictures[2], pictures[4]]
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
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    plain = family.model(**inputs).logits
    with family.adapter.session():
        assert implementation(family) == NAME
        assert torch.equal(family.model(**inputs).logits, plain)
    capture = RowCapture(torch.full((3, 1), -1))
    with family.adapter.session(capture):
        assert torch.equal(family.model(**inputs).logits, plain)
    assert len(capture.weights) == family.adapter.depth
    assert implementation(family) == "sdpa"


@pytest.mark.parametrize("name", FAMILIES)
def test_captured_rows_equal_eager(name: str, pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*FAMILIES[name](spread=0.1))
    for images in ([pictures[1]], _several(vlm, [pictures[0], pictures[3]])):
        inputs = inputs_of(vlm, [images], ["where is it?"])
        maps = eager_maps(vlm, inputs)[:, 0]
        expected = maps[..., -1:, :][..., inputs["input_ids"][0] == vlm.adapter.image_token_id]
        got = vlm.attend(images, "where is it?")
        torch.testing.assert_close(got.weights, expected, atol=1e-6, rtol=0)


def test_rows_of_a_padded_batch_equal_eager(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    full = eager_maps(family, inputs)[0]
    wanted = [-1] if is_t5(family) else [-1, -3]
    capture = RowCapture(torch.tensor([wanted] * 3), layers=(0,))
    with torch.inference_mode(), family.adapter.session(capture):
        family.model(**inputs)
    torch.testing.assert_close(capture.weights[0], full[:, :, wanted], atol=1e-6, rtol=0)


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
    patch = vlm.model.config.vision_config.patch_size
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
    if vlm.adapter.family == "llava-onevision" and kept.size > 1.1**2 * 2 * 16:  # twice the base view's cells at most
        ratio = (kept.size / (2 * 16)) ** 0.5
        smaller = [int(length // ratio) for length in kept.shape]
        kept = torch.nn.functional.interpolate(torch.tensor(kept)[None, None], smaller, mode="bilinear")[0, 0].numpy()
    assert kept.shape == (views[1].rows, views[1].columns)
    return [shown[0], kept]


@pytest.mark.parametrize("size", [(112, 112), (400, 300), (200, 610), (700, 150), (97, 131)])
def test_heat_maps_have_the_pictures_size_and_peaks_lie_inside(family: mmattn.VLM, size: tuple[int, int]) -> None:
    read = family.attend(_gradient(*size), "where?", rows="last" if is_t5(family) else "prompt")
    assert read.heatmap().shape == size[::-1]
    x, y = read.peak()
    assert 0 <= x <= size[0]
    assert 0 <= y <= size[1]
    assert read.heatmap()[min(int(y), size[1] - 1), min(int(x), size[0] - 1)] > 0


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_newline_tokens_belong_to_no_cell(name: str, pictures: list[Any]) -> None:
    """Each row of the tiled view ends with a learned vector; maps must step over it."""
    vlm = mmattn.wrap(*FAMILIES[name]())
    for picture in pictures:
        prepared = vlm.adapter.prepare([Sample((picture,), "q")])[0]
        image = prepared.layout.images[0]
        with torch.no_grad():
            features = vlm.adapter.encode(prepared.pixels)[0]
        newline = (features == vlm.model.model.image_newline).all(-1).nonzero().flatten() + image.tokens.start
        cells = {cell for view in image.views for cell in view.tokens}
        assert sorted(set(image.tokens) - cells) == newline.tolist()
        assert len(newline) == image.views[1].rows


@pytest.fixture(scope="module", params=["instructblip", "instructblip-t5"])
def mixing(request: pytest.FixtureRequest) -> mmattn.VLM:
    """The families whose image tokens are mixtures of cells."""
    return mmattn.wrap(*FAMILIES[request.param](spread=0.1))


def test_shares_of_image_tokens_are_the_q_formers_cross_attention(mixing: mmattn.VLM, pictures: list[Any]) -> None:
    """In a batch with instructions of other lengths, one by one as eager gives them; the class token left out."""
    prompts = ["a longer question this time", "x", "is it?"]
    prepared = mixing.adapter.prepare([Sample((one,), p) for one, p in zip(pictures, prompts, strict=False)])
    with torch.inference_mode():
        shares: dict[str, torch.Tensor] = {}
        mixing.adapter.encode([one.pixels[0] for one in prepared], shares)
    got = [shares[one.pixels[0].key] for one in prepared]
    for share, picture, prompt in zip(got, pictures, prompts, strict=False):
        inputs = inputs_of(mixing, [[picture]], [prompt])
        mixing.model.qformer.set_attn_implementation("eager")
        with torch.no_grad():
            out = mixing.model.get_image_features(
                inputs["pixel_values"],
                qformer_input_ids=inputs["qformer_input_ids"],
                qformer_attention_mask=inputs["qformer_attention_mask"],
                output_attentions=True,
                return_dict=True,
            )
        mixing.model.qformer.set_attn_implementation("sdpa")
        expected = torch.stack(out.qformer_outputs.cross_attentions)[:, 0].mean((0, 1))
        assert expected.shape == (8, 17)
        torch.testing.assert_close(share, expected[:, 1:], atol=1e-6, rtol=0)


def test_heat_maps_of_mixtures_are_the_product_of_both_attentions(mixing: mmattn.VLM, pictures: list[Any]) -> None:
    read = mixing.attend(pictures[1], "where?", "here")
    assert read.weights.shape == (3, 4, 5, 8)
    share = read.shares[0]
    assert share is not None
    expected = (read.weights[1, 2, 3] @ share).reshape(4, 4).numpy()
    np.testing.assert_allclose(read.grids(layers=1, heads=2, rows=3)[0], expected, rtol=1e-5)
    assert read.heatmap().shape == (60, 120)


def test_features_depend_on_the_question(mixing: mmattn.VLM, pictures: list[Any]) -> None:
    """Equal pictures share the vision tower, not the Q-Former; equal questions about one share both."""
    samples = [Sample((pictures[0],), prompt) for prompt in ("what?", "who?", "what?")]
    keys = [one.pixels[0].key for one in mixing.adapter.prepare(samples)]
    assert keys[0] == keys[2] != keys[1]
    seen: list[int] = []
    hook = mixing.model.vision_model.register_forward_hook(
        lambda _m, _a, kwargs, _o: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    together = mixing.generate(pictures[0], ["what?", "who?", "what?"], max_new_tokens=4, stop_token_ids=[])
    hook.remove()
    assert seen == [1]
    assert together[0] == together[2] != together[1]


def test_a_prompt_longer_than_the_q_former_reads_is_told(mixing: mmattn.VLM, pictures: list[Any]) -> None:
    with pytest.raises(MmattnError, match="takes 301 tokens, the Q-Former reads 256"):
        mixing.generate(pictures[0], "x" * 300)


def test_one_picture_per_prompt_is_all_it_takes(mixing: mmattn.VLM, pictures: list[Any]) -> None:
    with pytest.raises(MmattnError, match="instructblip takes 1 picture per prompt, not 2"):
        mixing.generate([pictures[:2]], ["what?"])


def test_an_encoders_tokens_cannot_be_rows(pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*FAMILIES["instructblip-t5"]())
    for rows in ("prompt", "cat"):
        with pytest.raises(MmattnError, match='choose rows "last" or "answer"'):
            vlm.attend(pictures[0], "a cat?", rows=rows)
    read = vlm.attend(pictures[0], "a cat?", "yes")
    assert "".join(read.tokens).strip() == "yes"
    first = vlm.attend(pictures[0], "a cat?")
    full = eager_maps(vlm, inputs_of(vlm, [[pictures[0]]], ["a cat?"]))
    torch.testing.assert_close(first.weights, full[:, 0, :, :1, :8], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_scores_of_t5_equal_stock_ones(pictures: list[Any], scaled: bool) -> None:
    """Greedy tokens forgive a scale; contrast and sampling would not."""
    vlm = mmattn.wrap(*FAMILIES["instructblip-t5"]())
    vlm.model.language_model.config.scale_decoder_outputs = scaled
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    with torch.inference_mode(), vlm.adapter.session():
        expected = vlm.model(**inputs).logits[:, -1]
        prepared = vlm.adapter.prepare([Sample((pictures[0],), "what?")])
        batch = vlm.adapter.embed(prepared, [vlm.adapter.encode(prepared[0].pixels)])
        got = vlm.adapter.logits(vlm.adapter.decode(batch)[:, -1])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_placeholder_in_the_prompt_is_refused(family: mmattn.VLM, pictures: list[Any]) -> None:
    token = family.adapter.tokenizer.convert_ids_to_tokens(family.adapter.image_token_id)
    with pytest.raises(MmattnError, match="contains the image placeholder"):
        family.generate(pictures[0], f"what is {token}?")


def test_other_language_models_inside_instructblip_are_told() -> None:
    model, processor = FAMILIES["instructblip"]()
    model.config.text_config.model_type = "opt"
    with pytest.raises(MmattnError, match="InstructBLIP with a opt language model is not supported"):
        mmattn.wrap(model, processor)


def test_pictures_that_share_a_prompt_are_padded_squares(pictures: list[Any]) -> None:
    """LLaVA-OneVision tiles a picture that is alone; the same one beside another is shown once, in its own frame."""
    vlm = mmattn.wrap(*FAMILIES["llava-onevision"]())
    blue = Image.new("RGB", (120, 60), (20, 40, 200))
    marked = blue.copy()
    marked.paste((255, 200, 0), (84, 24, 96, 36))
    samples = [Sample((one, blue), "q") for one in (blue, marked)] + [Sample((marked,), "q")]
    before, after, alone = vlm.adapter.prepare(samples)
    assert len(alone.layout.images[0].views) == 2
    first, second = after.layout.images
    assert (len(first.tokens), len(second.tokens)) == (17, 17)
    assert first.views[0].to_pixels == Affine(30, 30, 0, -30)
    change = np.abs(_shown(vlm, after.pixels[0]) - _shown(vlm, before.pixels[0]))[0]
    assert divmod(int(change.argmax()), 4) in [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert np.count_nonzero(change > 0.5 * change.max()) <= 4
    with torch.no_grad():
        mixed = vlm.adapter.encode([after.pixels[0], alone.pixels[0], after.pixels[1]])
        each = [vlm.adapter.encode([one])[0] for one in (after.pixels[0], alone.pixels[0], after.pixels[1])]
    for together, by_itself in zip(mixed, each, strict=True):
        torch.testing.assert_close(together, by_itself, atol=1e-5, rtol=1e-5)
    assert bool((mixed[0][-1] == vlm.model.model.image_newline).all())
