"""What strangers may send: a message for everything that is no ordinary picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from mmattn.demo.uploads import read, told
from mmattn.errors import MmattnError


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG whose header promises more pixels than its few bytes hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def jpeg(path: Path) -> bytes:
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, "JPEG")
    return path.read_bytes()


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "text.png": (lambda path: path.write_text("I am no picture"), "not a picture"),
    "drawing.svg": (
        lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
        "not a picture",
    ),
    "drawing.png": (lambda path: path.write_text('<?xml version="1.0"?><svg></svg>'), "not a picture"),
    "script.eps": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture"),
    "empty.png": (lambda path: path.write_bytes(b""), "not a picture"),
    "50mp.png": (lambda path: bomb(path, 10_000, 5_000), "too large"),
    "100mp.png": (lambda path: bomb(path, 10_000, 10_000), "too large"),
    "bomb.png": (lambda path: bomb(path, 60_000, 60_000), "too large"),
    "thin.png": (lambda path: Image.new("RGB", (1, 10_000)).save(path), "too small"),
    "strip.png": (lambda path: Image.new("RGB", (10, 9_000)).save(path), "too long and thin"),
    "short.jpg": (lambda path: path.write_bytes(jpeg(path)[:300]), "damaged"),
    "short.png": (lambda path: bomb(path, 64, 64), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_words(tmp_path: Path, name: str) -> None:
    write, reason = HOSTILE[name]
    write(tmp_path / name)
    with pytest.raises(MmattnError, match=reason) as caught:
        read(tmp_path / name, name)
    assert str(tmp_path) not in str(caught.value), "the server's paths are nobody's business"


def test_a_picture_is_read_upright_and_named(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "0123.jpg", exif=exif)
    found = read(tmp_path / "0123.jpg", "../../etc/holiday.jpg")
    assert (found.image.size, found.image.mode, found.name) == ((20, 40), "RGB", "holiday.jpg")
    Image.fromarray(np.zeros((30, 30, 4), np.uint8)).save(tmp_path / "clear.png")
    assert read(tmp_path / "clear.png", "clear.png").image.getpixel((3, 3)) == (255, 255, 255)


def test_messages_are_shown_and_not_run() -> None:
    with pytest.raises(gr.Error) as caught, told():
        raise MmattnError("<img src=x onerror=alert(1)> is no method", "Choose another")
    assert "<img" not in caught.value.message
    assert "&lt;img" in caught.value.message
    with pytest.raises(gr.Error, match="Out of memory"), told():
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(RuntimeError), told():
        raise RuntimeError("a mistake of ours")
