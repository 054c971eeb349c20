"""Grounding a query, and how the answer compares with the truth where it is known."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw

import mmattn
from mmattn.demo.asking import checked
from mmattn.demo.drawing import shown
from mmattn.demo.examples import Examples
from mmattn.demo.screen import Box
from mmattn.demo.state import Picture
from mmattn.grounding import LOCATORS, overlay, save_overlay

Point = tuple[float, float]

FOUND, CLICKED, TRUTH = "#22d3ee", "#e879f9", "#22c55e"


@dataclass(frozen=True)
class Found:
    """What the page remembers of one query.

    Attributes:
        method: as it was run.
        truth: XYXY boxes in original pixels; none where nobody knows.
        click: where the visitor says that it is, in original pixels.
    """

    model: str
    picture: Picture
    query: str
    method: str
    grounding: mmattn.Grounding
    truth: tuple[Box, ...] = ()
    click: Point | None = None


def ground(model: mmattn.VLM, name: str, picture: Picture | None, query: str, method: str, examples: Examples) -> Found:
    """Ask the model where `query` is.

    Raises:
        MmattnError: no picture, no query, or a method that cannot be used.
    """
    picture, query = checked(picture, query)
    grounding = model.ground(picture.image, query, method=method)
    return Found(name, picture, query, method, grounding, true_boxes(examples, picture, query))


def true_boxes(examples: Examples, picture: Picture, query: str) -> tuple[Box, ...]:
    """Boxes of everything in an example that the query names: by its category's name or a synonym."""
    example = examples.find(picture)
    if example is None:
        return ()
    named = {one.object for one in examples.mentions(picture, query)}
    named |= {name for name in example.boxes if name.casefold() in query.casefold()}
    return tuple(box for name in sorted(named) for box in example.boxes.get(name, ()))


def method_of(name: str, arguments: str) -> str:
    """The method as `VLM.ground` takes it."""
    return f"{name}({arguments})" if arguments.strip() else name


def methods() -> list[tuple[str, str]]:
    """What the page offers: label and name."""
    return [(f"{name}: {kind.summary}", name) for name, kind in LOCATORS.items()]


def clicked(found: Found, x: float, y: float) -> Found:
    """With the visitor's click at (x, y) of the picture as it is shown."""
    width, height = shown(found.picture.image).size
    return replace(found, click=(x * found.picture.image.width / width, y * found.picture.image.height / height))


def drawn(found: Found, opacity: float) -> Image.Image:
    """Map, boxes and points, at display size."""
    image = shown(found.picture.image)
    heat = Image.fromarray(found.grounding.heatmap).resize(image.size, Image.Resampling.NEAREST)
    picture = overlay(image, np.asarray(heat, dtype=np.float32), opacity)
    scale = image.width / found.picture.image.width
    draw, width = ImageDraw.Draw(picture), max(round(min(picture.size) / 150), 2)
    for box in found.truth:
        draw.rectangle([side * scale for side in box], outline=TRUTH, width=width)
    for number, box in enumerate(found.grounding.boxes):
        draw.rectangle([side * scale for side in box], outline=FOUND, width=1 if number else width)
    for point, colour in ((found.grounding.point, FOUND), (found.click, CLICKED)):
        if point is not None:
            _cross(draw, (point[0] * scale, point[1] * scale), colour, 5 * width)
    return picture


def plain(found: Found) -> Image.Image:
    """The picture beside its map, boxes and point, as the library draws them."""
    with TemporaryDirectory() as folder:
        point = found.grounding.point
        path = save_overlay(
            Path(folder) / "ground.png", found.picture.image, found.grounding.heatmap, found.query,
            found.grounding.boxes, [point] if point else [],
        )  # fmt: skip
        with Image.open(path) as image:
            image.load()
            return image


def _cross(draw: ImageDraw.ImageDraw, at: Point, colour: str, size: int) -> None:
    x, y = at
    for thick, ink in ((size // 2 + 2, "black"), (size // 2 - 1, colour)):
        draw.line((x - size, y, x + size, y), ink, max(thick // 2, 1))
        draw.line((x, y - size, x, y + size), ink, max(thick // 2, 1))


def inside(point: Point, boxes: Sequence[Box]) -> bool:
    return any(left <= point[0] < right and top <= point[1] < bottom for left, top, right, bottom in boxes)


def overlap(box: Box, boxes: Sequence[Box]) -> float:
    """The largest intersection over union of `box` with one of `boxes`."""
    best = 0.0
    for other in boxes:
        across = min(box[2], other[2]) - max(box[0], other[0])
        down = min(box[3], other[3]) - max(box[1], other[1])
        common = max(across, 0) * max(down, 0)
        areas = sum((one[2] - one[0]) * (one[3] - one[1]) for one in (box, other))
        best = max(best, common / (areas - common) if common else 0.0)
    return best


def told_of(found: Found) -> str:
    """What was found, in words, as HTML."""
    query, result = html.escape(found.query), found.grounding
    if result.point is None:
        return f"<b>{query}</b>: nothing found. {html.escape(result.reason)}"
    box = ", ".join(f"{side:.0f}" for side in result.boxes[0])
    lines = [
        f"<b>{query}</b>: <span style='color:{FOUND}'>the model</span> clicks at x = {result.point[0]:.0f}, "
        f"y = {result.point[1]:.0f}; best of {len(result.boxes)} box(es): {box} (score {result.scores[0]:.2f})."
    ]
    if found.truth:
        hit = "inside" if inside(result.point, found.truth) else "outside"
        score = overlap(result.boxes[0], found.truth)
        lines.append(f"That is {hit} the <span style='color:{TRUTH}'>true box</span>; overlap (IoU) {score:.2f}.")
    else:
        lines.append("Nobody annotated this, so there is no truth to compare with.")
    if found.click is not None:
        where = f"<span style='color:{CLICKED}'>Your click</span> at x = {found.click[0]:.0f}, y = {found.click[1]:.0f}"
        if found.truth:
            where += f" is {'inside' if inside(found.click, found.truth) else 'outside'} the true box"
        apart = ((found.click[0] - result.point[0]) ** 2 + (found.click[1] - result.point[1]) ** 2) ** 0.5
        lines.append(f"{where}, {apart:.0f} pixels from the model's.")
    return "<br>".join(lines)
