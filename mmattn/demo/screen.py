"""A window that looks like a photo application: something with buttons to ground in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
Boxes = Mapping[str, Sequence[Box]]

WIDTH, HEIGHT, BAR, SIDE, TILE, GAP = 672, 504, 56, 120, 116, 16
INK, PAPER, CARD, ACCENT = (38, 42, 51), (243, 244, 247), (255, 255, 255), (44, 98, 214)


def screenshot(scenes: Sequence[tuple[Image.Image, Boxes]]) -> tuple[Image.Image, dict[str, list[Box]]]:
    """The window, and the boxes (XYXY pixels) of its tiles by the category that each shows."""
    window = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(window)
    _frame(draw)
    boxes: dict[str, list[Box]] = {}
    columns = (WIDTH - SIDE - GAP) // (TILE + GAP)
    rows = (HEIGHT - BAR - GAP) // (TILE + GAP)
    for number, (category, icon) in enumerate(_icons(scenes, columns * rows)):
        row, column = divmod(number, columns)
        left, top = SIDE + GAP + column * (TILE + GAP), BAR + GAP + row * (TILE + GAP)
        draw.rounded_rectangle((left, top, left + TILE, top + TILE), 10, CARD, (221, 224, 230))
        window.paste(icon, (left + (TILE - icon.width) // 2, top + 8))
        draw.text((left + TILE / 2, top + TILE - 14), category, INK, _font(13), anchor="mm")
        boxes[category] = [(left, top, left + TILE, top + TILE)]
    return window, boxes


def _icons(scenes: Sequence[tuple[Image.Image, Boxes]], count: int) -> list[tuple[str, Image.Image]]:
    """Crops of `count` categories: of each the one that is largest."""
    best: dict[str, tuple[float, Image.Image, Box]] = {}
    for image, boxes in scenes:
        for category, places in boxes.items():
            for box in places:
                area = (box[2] - box[0]) * (box[3] - box[1])
                if area > best.get(category, (0.0,))[0]:
                    best[category] = (area, image, box)
    chosen = sorted(best, key=lambda category: -best[category][0])[:count]
    found = []
    for category in sorted(chosen):
        _, image, box = best[category]
        icon = image.crop(tuple(map(int, box)))  # type: ignore[arg-type]
        icon.thumbnail((TILE - 40, TILE - 40), Image.Resampling.LANCZOS)
        found.append((category, icon))
    return found


def _frame(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, WIDTH, BAR), INK)
    draw.text((20, BAR / 2), "Pictures", "white", _font(20), anchor="lm")
    draw.rounded_rectangle((SIDE + GAP, 12, WIDTH - 210, BAR - 12), 8, (66, 72, 85))
    draw.text((SIDE + GAP + 14, BAR / 2), "Search", (190, 196, 208), _font(14), anchor="lm")
    for right, label, colour in ((WIDTH - 108, "Upload", (66, 72, 85)), (WIDTH - 16, "Sign in", ACCENT)):
        draw.rounded_rectangle((right - 84, 12, right, BAR - 12), 8, colour)
        draw.text((right - 42, BAR / 2), label, "white", _font(14), anchor="mm")
    draw.rectangle((0, BAR, SIDE, HEIGHT), (230, 232, 238))
    for number, label in enumerate(("All", "Albums", "Shared", "Trash")):
        draw.text((20, BAR + 34 + 34 * number), label, ACCENT if number == 0 else INK, _font(15), anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own: the same on every machine
