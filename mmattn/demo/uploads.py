"""Pictures that strangers send: read with a few decoders only, and never decoded before their size is known."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image, UnidentifiedImageError

from mmattn.demo.state import Picture
from mmattn.errors import MmattnError, is_out_of_memory
from mmattn.images import open_image

MAX_PIXELS = 40_000_000
MAX_BYTES = 40 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
REMEDY = "Choose a PNG, JPEG or WebP file."


def read(path: Path, name: str) -> Picture:
    """The picture at `path`, which the user knows as `name`.

    Raises:
        MmattnError: no picture of a common format, damaged, too large, or too thin.
    """
    told = Path(name).name[:60] or "The file"
    if path.stat().st_size > MAX_BYTES:
        raise MmattnError(f"{told} is larger than {MAX_BYTES >> 20} MB", "Shrink it first.")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise too_large(told, f"{width} x {height} pixels")
            return Picture(open_image(picture), told)
    except UnidentifiedImageError as error:
        raise MmattnError(f"{told} is not a picture that can be read", REMEDY) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(told, "far too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged data
        raise MmattnError(f"{told} is damaged", "Download or export it again.") from error


def too_large(name: str, size: str) -> MmattnError:
    return MmattnError(f"{name} is too large ({size})", f"At most {MAX_PIXELS // 1_000_000} megapixels: shrink it.")


def upload(**options: Any) -> gr.Image:
    """A picture field that hands over a checked `Picture`, and takes files only: no links, no inline data.

    Its pictures go to the browser as PNG, so that an example that comes back is the same pixel by pixel.
    """
    field = gr.Image(type="filepath", image_mode=None, format="png", **options)

    def preprocess(payload: ImageData | None) -> Picture | None:
        with told():
            if payload is None:
                return None
            if payload.path is None:
                raise MmattnError("That is a link, not a picture", "Upload the file itself.")
            return read(Path(payload.path), payload.orig_name or Path(payload.path).name)

    # On this one field: gradio writes a file of its own beside the source of every subclass.
    field.preprocess = preprocess  # type: ignore[method-assign, assignment]
    files_only(field)
    return field


def files_only(field: gr.Image | gr.ImageEditor) -> None:
    """Refuse links that a client sends in place of a file; gradio would fetch them."""
    keep = field.async_move_resource_to_block_cache

    async def move(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("Links are not fetched. Upload the file itself.", print_exception=False)
        return await keep(url_or_file_path)

    field.async_move_resource_to_block_cache = move  # type: ignore[method-assign]


def drawing_only(editor: gr.ImageEditor) -> None:
    """Whatever else a client sends in place of a drawing gets a message."""
    keep = editor.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return keep(payload)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise gr.Error("The drawing cannot be read. Load the page again.", print_exception=False) from error

    editor.preprocess = preprocess  # type: ignore[method-assign]
    files_only(editor)


@contextmanager
def told() -> Iterator[None]:
    """Problems of the user's become messages on the page; their words are shown, never run."""
    try:
        yield
    except MmattnError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise gr.Error("Out of memory. Ask for fewer tokens, or show a smaller picture.") from error
