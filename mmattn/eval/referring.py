"""Things to find in pictures, one query and one box each: from COCO instances, and from files as they are published."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmattn.errors import MmattnError, unknown
from mmattn.eval.coco import Instances
from mmattn.text import is_text

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Target:
    """One query about one picture.

    Attributes:
        id: unique in its set.
        image: file name, relative to the folder of pictures.
        query: what to find, or what to do.
        box: XYXY pixels of the upright original; a right click lies inside.
        kind: a group that is also reported on its own, such as "text" or "icon"; "" for none.
    """

    id: str
    image: str
    query: str
    box: Box
    kind: str = ""


@dataclass(frozen=True)
class Targets:
    """A set of queries.

    Attributes:
        name: for tables and folders.
        targets: in the order of the file.
        sha256: of the file they come from.
        skipped: entries without a box, which nothing can be measured by.
        longest: pictures are shrunk so that no side is longer than this many pixels before a model sees them; 0: not.
    """

    name: str
    targets: tuple[Target, ...]
    sha256: str
    skipped: int = 0
    longest: int = 0

    def first(self, images: int | None) -> Targets:
        """Those about the first so many pictures; all if None."""
        names = list(dict.fromkeys(one.image for one in self.targets))[:images]
        kept = tuple(one for one in self.targets if one.image in set(names))
        return Targets(self.name, kept, self.sha256, self.skipped, self.longest)


def single_objects(name: str, instances: Instances) -> Targets:
    """Wherever exactly one dog is annotated: find "the dog"."""
    targets = tuple(
        Target(f"{image}/{category}", image, f"the {category}", boxes[0])
        for image in instances.images
        for category, boxes in instances.boxes[image].items()
        if len(boxes) == 1
    )
    return Targets(name, targets, instances.sha256)


def load_targets(kind: str, path: Path) -> Targets:
    """Read a published file: kind "screenspot", "ocg", "mind2web" or "refcoco".

    - screenspot: a list of {img_filename, instruction, bbox: [x, y, w, h], data_type, data_source}.
    - ocg: text to find on a screen (as TAG's optical character grounding): a list of {img_filename, text,
      bbox: [x, y, w, h]}, perhaps with an aspect_ratio.
    - mind2web: SeeClick's episodes, {annotation_id, confirmed_task, actions: [{action_uid, operation, bbox: {x, y,
      width, height}}]}; the picture is annotation_id-action_uid.jpg. Actions without a box are skipped.
    - refcoco: MDETR's COCO form: images with file_name and caption, annotations with image_id and bbox.

    Raises:
        MmattnError: unknown kind, missing file, no JSON, or an entry that is not of this form.
    """
    if kind not in _READERS:
        raise unknown("kind of file", kind, _READERS)
    if not path.is_file():
        raise MmattnError(f"File {path} does not exist", "Check the path.")
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MmattnError(f"{path} is not valid JSON ({error})", "Download or export the file again.") from error
    targets, skipped = _READERS[kind](data, str(path))
    seen: set[str] = set()
    for one in targets:
        if one.id in seen:
            raise MmattnError(f"{path}: {one.id} stands there twice", "Mend or remove one of the entries.")
        seen.add(one.id)
    if not targets:
        raise MmattnError(f"{path} holds nothing to find", f"Is it a {kind} file?")
    longest = 1344 if kind == "screenspot" else 0  # as TAG shows them
    return Targets(kind, tuple(targets), hashlib.sha256(raw).hexdigest(), skipped, longest)


Found = tuple[list[Target], int]


def _screenspot(data: Any, path: str) -> Found:
    targets = []
    for number, entry in enumerate(_list(data, path)):
        where = f"{path}: entry {number}"
        targets.append(
            Target(
                str(number),
                _text(entry, "img_filename", where),
                _text(entry, "instruction", where),
                _xywh(_field(entry, "bbox", where), where),
                _text(entry, "data_type", where),
            )
        )
    return targets, 0


def _ocg(data: Any, path: str) -> Found:
    targets = []
    for number, entry in enumerate(_list(data, path)):
        where = f"{path}: entry {number}"
        image, text = _text(entry, "img_filename", where), _text(entry, "text", where)
        kind = str(entry.get("aspect_ratio", ""))
        targets.append(Target(str(number), image, text, _xywh(_field(entry, "bbox", where), where), kind))
    return targets, 0


def _mind2web(data: Any, path: str) -> Found:
    targets, skipped = [], 0
    for number, episode in enumerate(_list(data, path)):
        where = f"{path}: episode {number}"
        annotation, task = (_text(episode, key, where) for key in ("annotation_id", "confirmed_task"))
        for step, action in enumerate(_list(_field(episode, "actions", where), where)):
            here = f"{where}, action {step}"
            name = f"{annotation}-{_text(action, 'action_uid', here)}"
            if not action.get("bbox"):
                skipped += 1
                continue
            sides = [_field(action["bbox"], key, here) for key in ("x", "y", "width", "height")]
            targets.append(Target(name, f"{name}.jpg", task, _xywh(sides, here)))
    return targets, skipped


def _refcoco(data: Any, path: str) -> Found:
    images: dict[int | str, Any] = {}
    for one in _list(_field(data, "images", path), f"{path}: images"):
        name = _id(one, "id", f"{path}: images")
        if name in images:
            raise MmattnError(f"{path}: image {name} stands there twice", "Mend or remove one of the entries.")
        images[name] = one
    targets = []
    for number, entry in enumerate(_list(_field(data, "annotations", path), f"{path}: annotations")):
        where = f"{path}: annotations[{number}]"
        image = images.get(_id(entry, "image_id", where))
        if image is None:
            raise MmattnError(f"{where} refers to an image that is not listed", "Check the file.")
        name, query = _text(image, "file_name", where), _text(image, "caption", where)
        targets.append(Target(str(number), name, query, _xywh(_field(entry, "bbox", where), where)))
    return targets, 0


_READERS: dict[str, Callable[[Any, str], Found]] = {
    "screenspot": _screenspot,
    "ocg": _ocg,
    "mind2web": _mind2web,
    "refcoco": _refcoco,
}
KINDS = tuple(_READERS)


def _list(data: Any, where: str) -> Sequence[Any]:
    if not isinstance(data, list):
        raise MmattnError(f"{where} is no list", "Check which kind of file it is.")
    return data


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise MmattnError(f"{where} has no '{key}'", "Check which kind of file it is.")
    return entry[key]


def _id(entry: Any, key: str, where: str) -> int | str:
    value = _field(entry, key, where)
    if not isinstance(value, (int, str)):
        raise MmattnError(f"{where}: '{key}' is no number or text", "Mend or remove the entry.")
    return value


def _text(entry: Any, key: str, where: str) -> str:
    value = _field(entry, key, where)
    if not is_text(value) or not value.strip():
        raise MmattnError(f"{where}: '{key}' is no text", "Mend or remove the entry.")
    return str(value)


def _xywh(value: Any, where: str) -> Box:
    """XYXY from [x, y, width, height]."""
    numbers = isinstance(value, list) and len(value) == 4
    if not numbers or not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value):
        raise MmattnError(f"{where}: 'bbox' is not four numbers", "It must be [x, y, width, height] in pixels.")
    try:
        x, y, width, height = map(float, value)
    except OverflowError:  # JSON holds whole numbers beyond all floats
        x = y = width = height = math.inf
    if not math.isfinite(x + y + width + height) or width <= 0 or height <= 0:
        raise MmattnError(f"{where}: 'bbox' {value} has no area", "It must be [x, y, width, height] in pixels.")
    return x, y, x + width, y + height
