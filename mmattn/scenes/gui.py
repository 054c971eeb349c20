"""Screens of programs that do not exist: buttons, fields, icons and text at ten aspect ratios, and what to find there.

Targets are in the form of ScreenSpot. Icons are the sprites of the scenes, so that the bundled models know them; they
cannot read, so text is there for models that can.
"""

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmattn.scenes.bank import SIZES, sprite
from mmattn.scenes.build import home, publish
from mmattn.scenes.catalog import names

__all__ = ["RATIOS", "ScreenSet", "screens"]

VERSION = "screens1"  # part of the folder name; raise it whenever the same seed would draw other targets
SEED = 40_001
RATIOS: tuple[tuple[int, int], ...] = (
    (9, 21), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 10), (16, 9), (21, 9)
)  # fmt: skip
AREA = 480_000  # pixels of a screen, about
CELL = (132, 76)  # room of one element
BAR = 44
ASKED = 6  # targets of a screen, at most
# One word for each element with text; none comes twice on a screen.
_WORDS = (
    "Save Open Close Send Reply Delete Search Print Share Upload Login Logout Next Back Cancel Apply Reset Help Home",
    "Profile Settings Inbox Drafts Music Photos Videos Maps News Sports Travel Weather Account Payment Orders Cart",
    "Checkout Email Password Name City Phone Street Country Company Website Birthday Comment Title Subject Price",
    "Amount Date Language Theme",
)
LABELS = tuple(word for line in _WORDS for word in line.split())
_KINDS = ("button", "field", "icon", "text", "icon", "empty")


@dataclass(frozen=True)
class ScreenSet:
    """Where a set lies: its folder, the folder of pictures, and the targets as a ScreenSpot file."""

    root: Path
    images: Path
    targets: Path


def screens(root: str | Path | None = None, seed: int = SEED, count: int = 40) -> ScreenSet:
    """The folder of a set of screens, generated at first use.

    The same (seed, count) gives the same elements, boxes and icons on every machine; how letters are drawn depends on
    the version of Pillow. ``root`` is as in :func:`mmattn.scenes.dataset`.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 screen")
    place = Path(root) if root is not None else home()
    target = place / f"{VERSION}-{seed}-{count}"
    if not target.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".screens-", dir=place))
        try:
            _write(draft, seed, count)
            draft.chmod(0o755)
            publish(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return ScreenSet(target, target / "images", target / "targets.json")


def _write(folder: Path, seed: int, count: int) -> None:
    (folder / "images").mkdir()
    targets: list[dict[str, Any]] = []
    for number in range(count):
        name = f"screen_{number + 1:04d}.png"
        picture, found = draw(random.Random(f"{seed} {number}"), RATIOS[number % len(RATIOS)])  # noqa: S311
        picture.save(folder / "images" / name, compress_level=3)
        targets += [{"img_filename": name, "data_source": "generated", **one} for one in found]
    (folder / "targets.json").write_text(json.dumps(targets, indent=1))


def draw(chance: random.Random, ratio: tuple[int, int]) -> tuple[Image.Image, list[dict[str, Any]]]:
    """One screen of about ``AREA`` pixels, and what to find on it: instruction, bbox [x, y, w, h] and data_type."""
    scale = (AREA / (ratio[0] * ratio[1])) ** 0.5
    size = (round(ratio[0] * scale), round(ratio[1] * scale))
    dark = chance.random() < 0.3
    ground, ink = ((38, 40, 48), (235, 235, 240)) if dark else ((246, 247, 250), (30, 32, 40))
    accent = chance.choice([(40, 110, 220), (20, 140, 90), (190, 70, 40), (120, 70, 180)])
    picture = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(picture)
    labels = chance.sample(LABELS, len(LABELS))
    icons = chance.sample(range(len(names())), len(names()))
    pen.rectangle((0, 0, size[0], BAR), fill=accent)
    pen.text((14, BAR // 2), labels.pop(), fill=(255, 255, 255), font=_font(20), anchor="lm")
    columns, rows = size[0] // CELL[0], (size[1] - BAR) // CELL[1]
    wide, high = size[0] / columns, (size[1] - BAR) / rows
    found: list[dict[str, Any]] = []
    for place in range(columns * rows):
        left, top = round(place % columns * wide), round(BAR + place // columns * high)
        kind = chance.choice(_KINDS)
        if kind == "empty" or (kind != "icon" and not labels) or not icons:
            continue
        if kind == "icon":
            found.append(_icon(picture, chance, icons.pop(), left, top))
        else:
            found.append(_element(pen, chance, kind, labels.pop(), (left, top), (accent, ground, ink)))
    return picture, chance.sample(found, min(ASKED, len(found)))


Colour = tuple[int, int, int]


def _element(
    pen: ImageDraw.ImageDraw,
    chance: random.Random,
    kind: str,
    label: str,
    corner: tuple[int, int],
    colours: tuple[Colour, Colour, Colour],
) -> dict[str, Any]:
    """A button, a field or a text in the cell at ``corner``."""
    accent, ground, ink = colours
    width, height = chance.randint(92, 112), chance.randint(30, 40)
    left, top = corner[0] + chance.randint(6, 14), corner[1] + chance.randint(10, 24)
    box = (left, top, left + width - 1, top + height - 1)
    middle = (top + top + height) // 2
    if kind == "button":
        pen.rounded_rectangle(box, radius=chance.choice([2, 8, 16]), fill=accent)
        pen.text(((left + left + width) // 2, middle), label, fill=(255, 255, 255), font=_font(16), anchor="mm")
    elif kind == "field":
        faint: Colour = tuple((a + b) // 2 for a, b in zip(ground, ink, strict=True))  # type: ignore[assignment]
        pen.rectangle(box, outline=faint, width=2)
        pen.text((left + 8, middle), label, fill=faint, font=_font(15), anchor="lm")
    else:
        pen.text((left, middle), label, fill=ink, font=_font(17), anchor="lm")
    asked = f"the {label} {kind}" if kind != "text" else f'the text "{label}"'
    return {"instruction": asked, "bbox": [left, top, width, height], "data_type": "text"}


def _icon(picture: Image.Image, chance: random.Random, category: int, left: int, top: int) -> dict[str, Any]:
    """A sprite in the cell at (left, top)."""
    index = chance.randint(2, 3)
    side = SIZES[index]
    image = Image.fromarray(sprite(category, 0, index).permute(1, 2, 0).numpy(), "RGBA")
    x, y = left + chance.randint(6, CELL[0] - side - 6), top + chance.randint(4, CELL[1] - side - 4)
    picture.paste(image, (x, y), image)
    return {"instruction": f"the {names()[category]}", "bbox": [x, y, side, side], "data_type": "icon"}


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own."""
    return ImageFont.load_default(size)
