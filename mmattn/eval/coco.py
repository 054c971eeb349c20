"""COCO-format annotation files: checked entry by entry, then read through pycocotools.

The check comes first because pycocotools answers a damaged file with a KeyError from deep inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmattn.errors import MmattnError
from mmattn.text import is_text

Box = tuple[float, float, float, float]

_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,)},
    "categories": {"id": (int,), "name": (str,)},
    "instances": {"id": (int,), "image_id": (int,), "category_id": (int,)},
    "captions": {"id": (int,), "image_id": (int,), "caption": (str,)},
}
_WORDS = {int: "a whole number", str: "a text"}


@dataclass(frozen=True)
class Instances:
    """Which objects are in which image. Boxes are XYXY pixels of the original image."""

    source: str
    sha256: str
    images: tuple[str, ...]
    """File names in the order of the file."""
    categories: tuple[str, ...]
    objects: Mapping[str, tuple[str, ...]]
    """Category names in each image, each once, in the order of their first annotation."""
    boxes: Mapping[str, Mapping[str, tuple[Box, ...]]]
    """Image -> category -> boxes of its annotations that have one."""
    sizes: Mapping[str, tuple[int, int]]
    """Width and height, for images whose entry tells them."""
    ids: Mapping[str, int] = field(default_factory=dict)
    """COCO's number of each image."""


@dataclass(frozen=True)
class Captions:
    """Reference captions by image file name."""

    source: str
    sha256: str
    texts: Mapping[str, tuple[str, ...]]


def load_instances(path: Path) -> Instances:
    """Read an instances file.

    Raises:
        MmattnError: the file is missing, no JSON, or an entry is malformed; the message names file and entry.
    """
    data, digest = _read(path)
    _check(path, data, "instances")
    coco = _index(data)
    names = {image["id"]: image["file_name"] for image in data["images"]}
    categories = {category["id"]: category["name"] for category in data["categories"]}
    objects: dict[str, tuple[str, ...]] = {}
    boxes: dict[str, dict[str, tuple[Box, ...]]] = {}
    for image_id, name in names.items():
        found: dict[str, tuple[Box, ...]] = {}
        for entry in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
            category = categories[entry["category_id"]]
            found[category] = found.get(category, ()) + _box(entry)
        objects[name], boxes[name] = tuple(found), found
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in data["images"] if _has_size(image)}
    ids = {name: number for number, name in names.items()}
    return Instances(path.name, digest, tuple(names.values()), tuple(categories.values()), objects, boxes, sizes, ids)


def load_captions(path: Path) -> Captions:
    """Read a captions file. Errors as for `load_instances`."""
    data, digest = _read(path)
    _check(path, data, "captions")
    coco = _index(data)
    texts = {
        image["file_name"]: tuple(entry["caption"] for entry in coco.imgToAnns.get(image["id"], ()))
        for image in data["images"]
    }
    return Captions(path.name, digest, texts)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        raise MmattnError(f"Annotation file {path} does not exist", "Check the path.")
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, or a thousand brackets
        raise MmattnError(f"{path} is not valid JSON ({error})", "Download or export the file again.") from error
    if not isinstance(data, dict):
        raise MmattnError(
            f"{path} holds {_kind(data)}, not a COCO annotation file",
            "It must be an object with 'images' and 'annotations'.",
        )
    return data, hashlib.sha256(raw).hexdigest()


def _check(path: Path, data: dict[str, Any], kind: str) -> None:
    lists = ["images", "annotations"] if kind == "captions" else ["images", "categories", "annotations"]
    for key in lists:
        if key not in data:
            raise MmattnError(f"{path} has no '{key}'", f"A COCO {kind} file needs {', '.join(lists)}.")
        if not isinstance(data[key], list):
            raise MmattnError(f"{path}: '{key}' is {_kind(data[key])}", "It must be a list.")
        for index, entry in enumerate(data[key]):
            _check_entry(f"{path}: {key}[{index}]", entry, _KEYS[kind if key == "annotations" else key])
        _check_unique(path, key, data[key], "id")
    _check_unique(path, "images", data["images"], "file_name")
    if kind == "instances":
        _check_unique(path, "categories", data["categories"], "name")
        _check_links(path, data, "category_id", "categories", "category")
        for index, entry in enumerate(data["annotations"]):
            _check_box(f"{path}: annotations[{index}]", entry)
    _check_links(path, data, "image_id", "images", "image")
    if not data["images"]:
        raise MmattnError(f"{path} lists no images", "Add at least one entry to 'images'.")


def _check_entry(where: str, entry: Any, keys: Mapping[str, tuple[type, ...]]) -> None:
    if not isinstance(entry, dict):
        raise MmattnError(f"{where} is {_kind(entry)}", f"Each entry is an object with {', '.join(keys)}.")
    for key, types in keys.items():
        if key not in entry:
            raise MmattnError(f"{where} has no '{key}'", f"Each entry needs {', '.join(keys)}.")
        # bool is an int in Python; True is no id
        if not isinstance(entry[key], types) or isinstance(entry[key], bool):
            raise MmattnError(f"{where}: '{key}' is {_kind(entry[key])}", f"It must be {_WORDS[types[0]]}.")
        if str in types and not is_text(entry[key]):
            raise MmattnError(f"{where}: '{key}' has half a surrogate pair", "It must be text that UTF-8 can hold.")
        if entry[key] == "" and key != "caption":
            raise MmattnError(f"{where}: '{key}' is empty", "Give it a value or remove the entry.")


def _check_unique(path: Path, key: str, entries: list[dict[str, Any]], what: str) -> None:
    seen: dict[Any, int] = {}
    for index, entry in enumerate(entries):
        first = seen.setdefault(entry[what], index)
        if first != index:
            raise MmattnError(
                f"{path}: {key}[{index}] repeats {what} {entry[what]!r} of {key}[{first}]",
                f"Each {what} may occur once in '{key}'.",
            )


def _check_links(path: Path, data: dict[str, Any], key: str, target: str, word: str) -> None:
    known = {entry["id"] for entry in data[target]}
    for index, entry in enumerate(data["annotations"]):
        if entry[key] not in known:
            raise MmattnError(
                f"{path}: annotations[{index}] (id {entry['id']}) refers to {word} {entry[key]}, "
                f"which is not in '{target}'",
                f"Add the {word} or remove the annotation.",
            )


def _check_box(where: str, entry: dict[str, Any]) -> None:
    box = entry.get("bbox", [0, 0, 0, 0])
    numbers = isinstance(box, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in box)
    if not numbers or len(box) != 4 or not _is_finite(box):
        raise MmattnError(f"{where}: 'bbox' is not four numbers", "It must be [x, y, width, height] in pixels.")


def _is_finite(box: Sequence[float]) -> bool:
    """Whether all corners of the box are finite; JSON holds whole numbers beyond all floats, and infinities."""
    try:
        x, y, width, height = map(float, box)
    except OverflowError:
        return False
    return math.isfinite(x + width) and math.isfinite(y + height)


def _has_size(image: Mapping[str, Any]) -> bool:
    return all(type(side) is int and 0 < side < 2**31 for side in (image.get("width"), image.get("height")))


def _index(data: dict[str, Any]) -> Any:
    """The pycocotools object over `data`. It prints while it works; a library has no business on stdout."""
    try:
        api = importlib.import_module("pycocotools.coco")
    except ImportError as error:
        raise MmattnError("Evaluation needs pycocotools", 'Install it with: pip install "mmattn[eval]"') from error
    coco = api.COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _box(entry: Mapping[str, Any]) -> tuple[Box, ...]:
    if "bbox" not in entry:
        return ()
    x, y, width, height = map(float, entry["bbox"])
    return ((x, y, x + width, y + height),)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "the text", bool: "true or false", type(None): "null"}
    word = names.get(type(value), f"the number {value}")
    return f"{word} {value[:40]!r}" if isinstance(value, str) else word
