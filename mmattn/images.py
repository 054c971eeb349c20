"""Reading pictures as a viewer would show them: RGB, upright, 8 bit.

Everything that the toolkit says about pixels refers to the picture that `open_image` returns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmattn.errors import MmattnError

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any]

MIN_SIDE = 2
MAX_ASPECT = 200


def open_image(source: ImageLike) -> Image.Image:
    """Return `source` as an upright 8-bit RGB picture.

    Args:
        source: a path, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or of floats in
            0..1; grey ones may be uint16.

    EXIF rotation is applied, transparency is laid over white, CMYK and palettes are converted. 16-bit greyscale, in a
    file or an array, is scaled to 8 bit, unless no value exceeds 255. Floats, in a file, a PIL image or an array,
    must be finite and lie in 0..1.

    Raises:
        MmattnError: the file is missing, is no picture, is truncated, is smaller than 2 x 2 pixels, or has values out
            of range.
    """
    if isinstance(source, np.ndarray):
        return _checked(_rgb(_from_array(source, "The array"), "The array"), "The array")
    if isinstance(source, Image.Image):
        return _checked(_rgb(_loaded(source, "The picture"), "The picture"), "The picture")
    if not isinstance(source, (str, os.PathLike)):
        raise MmattnError(
            f"Cannot read a picture from {type(source).__name__}", "Give a path, a PIL image or a numpy array."
        )
    return _from_file(Path(source))


def _from_file(path: Path) -> Image.Image:
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise MmattnError(f"Image file {path} {what}", "Check the path.")
        with Image.open(path) as picture:
            return _checked(_rgb(_loaded(picture, str(path)), str(path)), str(path))
    except UnidentifiedImageError as error:
        raise MmattnError(f"{path} is not a picture that Pillow can read", "Convert it to PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise MmattnError(f"{path} has too many pixels to open safely", "Shrink it first.") from error
    except (OSError, SyntaxError, ValueError) as error:  # no permission, or a header that Pillow chokes on
        raise MmattnError(f"Cannot read {path} ({error})", "Check the file, or export it again.") from error


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    if 0 in picture.size:  # Pillow itself would fail later, deep inside a resize
        raise MmattnError(f"{name} has no pixels ({picture.width} x {picture.height})", "Use a real picture.")
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on damaged data
        raise MmattnError(f"{name} is damaged ({error})", "Download or export it again.") from error


def _from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise MmattnError(
            f"An array of shape {shape} is no picture", "Give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels last."
        )
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        array = _from_floats(array, name)
    elif array.dtype.newbyteorder("=") == np.uint16 and array.ndim == 2:
        array = _to_8_bit(array.astype(np.float64))
    if array.dtype != np.uint8:
        raise MmattnError(
            f"An array of type {array.dtype} and shape {shape} is no picture",
            "Pass uint8, floats in 0..1, or uint16 for grey.",
        )
    return Image.fromarray(array)


def _from_floats(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise MmattnError(f"{name} has floats outside of 0..1", "Scale them, or use uint8 values in 0..255.")
    return np.round(array * 255).astype(np.uint8)


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(picture), name)).convert("RGB")
    if picture.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(picture, dtype=np.float64))).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _to_8_bit(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Deep greyscale: 16-bit full scale when any value needs it, else the values as they are."""
    scale = 257.0 if values.max() > 255 else 1.0
    return np.clip(np.round(values / scale), 0, 255).astype(np.uint8)


def _checked(picture: Image.Image, name: str) -> Image.Image:
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise MmattnError(f"{name} is too small ({width} x {height} pixels)", f"At least {MIN_SIDE} x {MIN_SIDE}.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MmattnError(
            f"{name} is too long and thin ({width} x {height} pixels)", f"Crop it below {MAX_ASPECT} : 1."
        )
    return picture
