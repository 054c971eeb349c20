"""Pictures of every kind that users have, and the ones that are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.errors import MmattnError
from mmattn.images import open_image


def _saved(folder: Path, name: str, picture: Image.Image, **options: Any) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def _rotated(folder: Path) -> Path:
    """Stored lying on its side: red left half becomes the red top half when shown upright."""
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to display
    return _saved(folder, "exif.jpg", picture, exif=exif, quality=95)


def _deep(folder: Path) -> Path:
    return _saved(folder, "deep.png", Image.fromarray(np.full((20, 40), 65535, dtype=np.uint16)))


WORKS: list[tuple[str, Callable[[Path], Path], tuple[int, int], tuple[int, int, int]]] = [
    ("rgb", lambda d: _saved(d, "a.png", Image.new("RGB", (40, 20), (10, 20, 30))), (40, 20), (10, 20, 30)),
    ("clear", lambda d: _saved(d, "a.png", Image.new("RGBA", (40, 20), (9, 9, 9, 0))), (40, 20), (255, 255, 255)),
    ("grey", lambda d: _saved(d, "a.png", Image.new("L", (40, 20), 77)), (40, 20), (77, 77, 77)),
    ("grey+alpha", lambda d: _saved(d, "a.png", Image.new("LA", (40, 20), (77, 255))), (40, 20), (77, 77, 77)),
    ("1 bit", lambda d: _saved(d, "a.png", Image.new("1", (40, 20), 1)), (40, 20), (255, 255, 255)),
    ("16 bit", _deep, (40, 20), (255, 255, 255)),
    (
        "palette",
        lambda d: _saved(d, "a.gif", Image.new("RGB", (40, 20), (255, 0, 0)).quantize()),
        (40, 20),
        (255, 0, 0),
    ),
    ("cmyk", lambda d: _saved(d, "a.jpg", Image.new("CMYK", (40, 20), (0, 255, 255, 0))), (40, 20), (255, 0, 0)),
    ("exif", _rotated, (20, 40), (254, 0, 0)),
    ("tiny", lambda d: _saved(d, "a.png", Image.new("RGB", (2, 2), (1, 2, 3))), (2, 2), (1, 2, 3)),
]


@pytest.mark.parametrize(("make", "size", "colour"), [row[1:] for row in WORKS], ids=[row[0] for row in WORKS])
def test_readable_pictures(
    make: Callable[[Path], Path], size: tuple[int, int], colour: tuple[int, int, int], tmp_path: Path
) -> None:
    picture = open_image(make(tmp_path))
    assert picture.mode == "RGB"
    assert picture.size == size
    assert np.abs(np.asarray(picture)[0, 0].astype(int) - colour).max() <= 2


def test_arrays_and_pil_images() -> None:
    grey = np.full((4, 6), 0.5, dtype=np.float32)
    assert np.asarray(open_image(grey))[0, 0].tolist() == [128, 128, 128]
    colour = np.full((4, 6, 3), 200, dtype=np.uint8)
    assert open_image(colour).size == (6, 4)
    assert open_image(Image.new("L", (6, 4), 9)).mode == "RGB"


DEEP = np.full((4, 6), 65535, dtype=np.uint16)
GREY: list[tuple[str, Any, int]] = [
    ("float picture", Image.fromarray(np.full((4, 6), 0.5, dtype=np.float32)), 128),
    ("one channel", np.full((4, 6, 1), 77, dtype=np.uint8), 77),
    ("one float channel", np.full((4, 6, 1), 0.5), 128),
    ("16 bit", DEEP, 255),
    ("16 bit, one channel", DEEP[..., None], 255),
    ("16 bit, other byte order", DEEP.astype(">u2"), 255),
    ("16 bit type, 8 bit values", DEEP // 257, 255),
]


@pytest.mark.parametrize(("source", "level"), [row[1:] for row in GREY], ids=[row[0] for row in GREY])
def test_grey_of_every_depth(source: Any, level: int) -> None:
    picture = open_image(source)
    assert picture.size == (6, 4)
    assert np.asarray(picture)[0, 0].tolist() == [level] * 3


def _truncated(folder: Path) -> Path:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    path = folder / "cut.jpg"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    return path


def _text(folder: Path) -> Path:
    path = folder / "text.png"
    path.write_text("this is not a picture")
    return path


FAILS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", lambda d: d / "nowhere.png", "does not exist. Check the path"),
    ("folder", lambda d: d, "is a folder"),
    ("truncated", _truncated, "cut.jpg is damaged"),
    ("text", _text, "not a picture that Pillow can read"),
    ("empty file", lambda d: (d / "e.png", (d / "e.png").write_bytes(b""))[0], "not a picture"),
    ("one pixel", lambda d: _saved(d, "p.png", Image.new("RGB", (1, 1))), r"too small \(1 x 1 pixels\)"),
    ("thin", lambda d: _saved(d, "p.png", Image.new("RGB", (1000, 2))), "too long and thin"),
    ("no pixels", lambda _: Image.new("RGB", (0, 5)), "no pixels"),
    ("no pixels array", lambda _: np.zeros((0, 5, 3), dtype=np.uint8), "no picture"),
    ("channels first", lambda _: np.zeros((3, 8, 8), dtype=np.uint8), "channels last"),
    ("float out of range", lambda _: np.full((4, 4), 2.0), "0..1"),
    ("nan", lambda _: np.full((4, 4), np.nan), "0..1"),
    ("float picture out of range", lambda _: Image.fromarray(np.full((4, 4), 255, dtype=np.float32)), "0..1"),
    ("float picture nan", lambda _: Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "0..1"),
    (
        "float file",
        lambda d: _saved(d, "f.tif", Image.fromarray(np.full((4, 4), 255, dtype=np.float32))),
        r"f\.tif.*0\.\.1",
    ),
    ("16 bit colour", lambda _: np.zeros((4, 4, 3), dtype=np.uint16), "uint16"),
    ("two channels", lambda _: np.zeros((4, 4, 2), dtype=np.uint8), "channels last"),
    ("long name", lambda d: d / ("n" * 300), "Cannot read"),
    ("nul in name", lambda d: d / "a\0b", "does not exist"),
    ("int64", lambda _: np.zeros((4, 4), dtype=np.int64), "uint8"),
    ("number", lambda _: 3, "Cannot read a picture from int"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in FAILS], ids=[row[0] for row in FAILS])
def test_unreadable_ones_say_why(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match=message):
        open_image(make(tmp_path))


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path, "big.png", Image.new("RGB", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MmattnError, match="too many pixels"):
        open_image(path)
