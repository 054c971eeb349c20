"""Leading the model's eye: by what a scorer says of the question, or by a region that the visitor paints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import mmattn
from mmattn.adapters import Sample
from mmattn.decoding import AttentionPrompt
from mmattn.demo.asking import checked
from mmattn.demo.drawing import display_size, heat, shown
from mmattn.demo.screen import Box
from mmattn.demo.state import Picture, View
from mmattn.grounding import Attention, overlay
from mmattn.prompting import Recipe, brush_mask

Mask = NDArray[np.float32]

DIM, EMPHASISE, REFER = "dim the rest of the picture", "emphasise it (attention)", "ask about it (ControlMLLM)"
LONGEST = 64


@dataclass(frozen=True)
class Led:
    """A question asked twice: plainly, and with the eye led somewhere.

    Attributes:
        how: in words.
        pictures: before and after, at display size: what the model was shown, or where it looked.
        line: what changed, in words.
        body: Python lines that do the same; `image` is the picture "prompt.png".
        image: what is exported, in original pixels.
        data: JSON values.
        mask: what was painted, (H, W) in original pixels.
    """

    model: str
    picture: Picture
    prompt: str
    how: str
    before: str
    after: str
    pictures: tuple[Image.Image, Image.Image]
    line: str
    body: str
    image: Image.Image
    data: dict[str, Any] = field(default_factory=dict)
    mask: Mask | None = None


def dim_by_question(
    model: mmattn.VLM, name: str, picture: Picture | None, prompt: str, scorer: str, strength: float, enhance: float
) -> Led:
    """Attention prompting: dim what the question is not about.

    Raises:
        MmattnError: no picture, no question, or a scorer that is not installed.
    """
    picture, prompt = checked(picture, prompt)
    layer, head = model.localisation_head if model.localisation_head and scorer != "clip" else (None, None)
    method = AttentionPrompt(scorer=scorer, layer=layer, head=head, strength=strength, enhance=enhance)
    dimmed = method.shown(model, [Sample((picture.image,), prompt)], 1)[0].images[0]
    before, after = _answers(model, [picture.image, dimmed], prompt)
    chosen = ", ".join(
        f"{key}={value!r}"
        for key, value in (
            ("scorer", scorer), ("layer", layer), ("head", head), ("strength", strength), ("enhance", enhance)
        )
        if value is not None
    )  # fmt: skip
    body = (
        f"from mmattn.adapters import Sample\nfrom mmattn.decoding import AttentionPrompt\n\n"
        f"image, prompt = mmattn.open_image(picture), {prompt!r}\nmethod = AttentionPrompt({chosen})\n"
        f'method.shown(model, [Sample((image,), prompt)], 1)[0].images[0].save("prompt.png")\n'
        f"print(model.generate(image, prompt, method=method, max_new_tokens={LONGEST})[0].text)\n"
    )
    line = "The model's answer to the picture as it is, and to the picture on the right."
    pair = shown(picture.image), shown(dimmed)
    data = {"method": method.settings()}
    return Led(name, picture, prompt, f"dimmed by {scorer}", before, after, pair, line, body, dimmed, data)


def lead_by_hand(
    model: mmattn.VLM, name: str, picture: Picture | None, prompt: str, painted: Mask | None, how: str,
    strength: float, by: str,
) -> Led:  # fmt: skip
    """Dim, emphasise or ask about what was painted.

    Raises:
        MmattnError: no picture, no question, nothing painted, or a family that cannot do it.
    """
    picture, prompt = checked(picture, prompt)
    if painted is None or not painted.any():
        raise mmattn.MmattnError("Nothing is painted", "Brush over the place in the picture that matters.")
    mask = to_size(painted, picture.image.size)
    common = (name, picture, prompt)
    if how == DIM:
        return _dim(model, *common, mask, strength)
    return _emphasise(model, *common, mask, strength, by) if how == EMPHASISE else _refer(model, *common, mask)


def to_size(mask: Mask, size: tuple[int, int]) -> Mask:
    """`mask` at the size (W, H) of the picture that it was painted on at another scale."""
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=np.float32)


def boxes_of(mask: Mask) -> list[Box]:
    """XYXY boxes around each painted spot."""
    spots = ndimage.find_objects(ndimage.label(mask > 0)[0])
    return [(float(across.start), float(down.start), float(across.stop), float(down.stop)) for down, across in spots]


def _dim(model: mmattn.VLM, name: str, picture: Picture, prompt: str, mask: Mask, strength: float) -> Led:
    recipe = Recipe(strength=min(max(strength, 0.0), 1.0))
    dimmed = recipe.overlay(picture.image, brush_mask(mask))
    before, after = _answers(model, [picture.image, dimmed], prompt)
    body = (
        "from PIL import Image\nfrom mmattn.prompting import Recipe, brush_mask\n\n"
        'mask = brush_mask(Image.open("mask.png"))\n'
        f"dimmed = Recipe(strength={recipe.strength}).overlay(mmattn.open_image(picture), mask)\n"
        f'dimmed.save("prompt.png")\nprint(model.generate(dimmed, {prompt!r}, max_new_tokens={LONGEST})[0].text)\n'
    )
    pair, line = (shown(picture.image), shown(dimmed)), "All but what you painted is dimmed before the model sees it."
    data = {"strength": recipe.strength, "boxes": boxes_of(mask)}
    return Led(name, picture, prompt, DIM, before, after, pair, line, body, dimmed, data, mask)


def _emphasise(
    model: mmattn.VLM, name: str, picture: Picture, prompt: str, mask: Mask, strength: float, by: str
) -> Led:
    boxes = boxes_of(mask)
    emphasis = mmattn.emphasise(boxes, max(strength, 1.0), by)
    capture = mmattn.Capture()
    plain = model.generate(picture.image, prompt, max_new_tokens=LONGEST, capture=capture)[0]
    led = model.generate(picture.image, prompt, max_new_tokens=LONGEST, capture=capture, emphasise=emphasis)[0]
    looks = [one.attention for one in (plain, led) if one.attention is not None]
    before, after = (_inside(one, mask) for one in looks)
    line = (
        f"Of the attention on the picture, {before:.0%} lay in what you painted, and {after:.0%} does now "
        "(mean over the answer, all layers and heads). The maps show where."
    )
    body = (
        "from mmattn.grounding import overlay\n\n"
        f"emphasis = mmattn.emphasise({boxes!r}, {max(strength, 1.0)}, {by!r})\n"
        f"answer = model.generate(picture, {prompt!r}, max_new_tokens={LONGEST}, capture=mmattn.Capture(), "
        "emphasise=emphasis)[0]\n"
        'overlay(mmattn.open_image(picture), answer.attention.heatmap()).save("prompt.png")\nprint(answer.text)\n'
    )
    pair = _looked(picture.image, looks[0]), _looked(picture.image, looks[1])
    image = overlay(picture.image, looks[1].heatmap())
    data = {"boxes": boxes, "strength": strength, "by": by, "inside": {"before": before, "after": after}}
    return Led(name, picture, prompt, EMPHASISE, plain.text, led.text, pair, line, body, image, data, mask)


def _refer(model: mmattn.VLM, name: str, picture: Picture, prompt: str, mask: Mask) -> Led:
    found = model.refer(picture.image, prompt, mask=mask, max_new_tokens=LONGEST)
    before = model.generate(picture.image, prompt, max_new_tokens=LONGEST)[0].text
    first, last = found.activations[0], max(found.activations)
    line = (
        f"Of the attention on the picture, {first:.0%} lay in what you painted; {len(found.activations) - 1} steps "
        f"of gradient descent on a latent brought it to {last:.0%}."
    )
    body = (
        "from PIL import Image\nfrom mmattn.grounding import overlay\n\nimport numpy as np\n\n"
        'mask = np.asarray(Image.open("mask.png"), dtype=np.float32) / 255\n'
        f"found = model.refer(picture, {prompt!r}, mask=mask, max_new_tokens={LONGEST})\n"
        'overlay(mmattn.open_image(picture), mask, 0.5).save("prompt.png")\nprint(found.text)\n'
    )
    image = overlay(picture.image, mask, 0.5)
    data = {"boxes": boxes_of(mask), "activations": list(found.activations)}
    pair = shown(picture.image), shown(image)
    return Led(name, picture, prompt, REFER, before, found.text, pair, line, body, image, data, mask)


def _answers(model: mmattn.VLM, images: Sequence[Image.Image], prompt: str) -> tuple[str, str]:
    before, after = model.generate(list(images), [prompt] * 2, max_new_tokens=LONGEST)
    return before.text, after.text


def _inside(read: Attention, mask: Mask) -> float:
    """The part of the attention on the picture that lies in the mask."""
    heatmap = read.heatmap()
    return float((heatmap * mask).sum() / heatmap.sum())


def _looked(image: Image.Image, read: Attention) -> Image.Image:
    rows = range(len(read.positions))
    return overlay(shown(image), heat(read, rows, View(), display_size(image.size)))
