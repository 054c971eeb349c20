"""Draw mmattn/scenes/assets/atlas.png from the Noto Color Emoji font (Debian package fonts-noto-color-emoji)."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmattn.scenes.catalog import CATEGORIES

CELL, INK, COLUMNS = 128, 124, 8
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
# Parts of a glyph (left, top, right, bottom, 136 x 128 canvas) that show another category, made transparent:
# the knife beside the fork, the ball beside the racket.
ERASE = {"fork": (66, 0, 136, 128), "tennis racket": (0, 0, 46, 46)}


def sprite(name: str, emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph, cropped to its ink, scaled to ``INK`` pixels on its longer side, centred in a cell."""
    glyph = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    ImageDraw.Draw(glyph).text((0, 0), emoji, font=font, embedded_color=True)
    if name in ERASE:
        glyph.paste((0, 0, 0, 0), ERASE[name])
    box = Image.fromarray((np.asarray(glyph)[..., 3] > 40).astype(np.uint8)).getbbox()
    if box is None:
        raise SystemExit(f"the font has no glyph for {name}")
    glyph = glyph.crop(box)
    scale = INK / max(glyph.size)
    glyph = glyph.resize((round(glyph.width * scale), round(glyph.height * scale)), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    cell.paste(glyph, ((CELL - glyph.width) // 2, (CELL - glyph.height) // 2))
    return cell


def main() -> None:
    """Write the atlas: one cell a category, in catalogue order, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", default=FONT)
    parser.add_argument("--out", type=Path, default=Path("mmattn/scenes/assets/atlas.png"))
    args = parser.parse_args()
    font = ImageFont.truetype(args.font, 109)
    rows = -(-len(CATEGORIES) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for index, category in enumerate(CATEGORIES):
        atlas.paste(sprite(category.name, category.emoji, font), (index % COLUMNS * CELL, index // COLUMNS * CELL))
    atlas.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
