"""Files of things to find, in the forms in which they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmattn.errors import MmattnError
from mmattn.eval import load_instances
from mmattn.eval.referring import Target, load_targets, single_objects

SCREENSPOT = [
    {"img_filename": "a.png", "bbox": [10, 20, 30, 40], "instruction": "check the weather", "data_type": "icon",
     "data_source": "windows"},
    {"img_filename": "a.png", "bbox": [1.5, 2, 3, 4], "instruction": "close", "data_type": "text",
     "data_source": "windows"},
]  # fmt: skip
OCG = [{"img_filename": "a.png", "text": "Sign in", "bbox": [5, 6, 7, 8], "aspect_ratio": "1:2"}]
MIND2WEB = [
    {
        "annotation_id": "e-1",
        "confirmed_task": "Book a table",
        "actions": [
            {"action_uid": "u1", "bbox": {"x": 1, "y": 2, "width": 3, "height": 4},
             "operation": {"original_op": "CLICK", "value": "", "op": "CLICK"}},
            {"action_uid": "u2", "operation": {"original_op": "CLICK", "value": "", "op": "CLICK"}},
        ],
    }
]  # fmt: skip
REFCOCO = {
    "images": [
        {
            "file_name": "COCO_train2014_1.jpg",
            "height": 9,
            "width": 9,
            "id": 0,
            "original_id": 7,
            "caption": "left man",
        },
        {"file_name": "COCO_train2014_1.jpg", "height": 9, "width": 9, "id": 1, "original_id": 7, "caption": "red hat"},
    ],
    "annotations": [
        {"area": 1, "iscrowd": 0, "image_id": 1, "category_id": 1, "id": 0, "bbox": [1, 1, 2, 2]},
        {"area": 1, "iscrowd": 0, "image_id": 0, "category_id": 1, "id": 1, "bbox": [0, 0, 4, 5]},
    ],
    "categories": [{"id": 1, "name": "object"}],
}
EXPECTED = {
    "screenspot": (
        SCREENSPOT,
        [
            Target("0", "a.png", "check the weather", (10, 20, 40, 60), "icon"),
            Target("1", "a.png", "close", (1.5, 2, 4.5, 6), "text"),
        ],
    ),
    "ocg": (OCG, [Target("0", "a.png", "Sign in", (5, 6, 12, 14), "1:2")]),
    "mind2web": (MIND2WEB, [Target("e-1-u1", "e-1-u1.jpg", "Book a table", (1, 2, 4, 6))]),
    "refcoco": (
        REFCOCO,
        [
            Target("0", "COCO_train2014_1.jpg", "red hat", (1, 1, 3, 3)),
            Target("1", "COCO_train2014_1.jpg", "left man", (0, 0, 4, 5)),
        ],
    ),
}


def _file(folder: Path, data: Any) -> Path:
    path = folder / "targets.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize("kind", EXPECTED)
def test_published_forms(kind: str, tmp_path: Path) -> None:
    data, expected = EXPECTED[kind]
    read = load_targets(kind, _file(tmp_path, data))
    assert list(read.targets) == expected
    assert read.name == kind
    assert read.skipped == (kind == "mind2web")
    assert read.longest == (1344 if kind == "screenspot" else 0)
    assert len(read.sha256) == 64


def _without(entry: dict[str, Any], key: str, value: Any = None) -> dict[str, Any]:
    kept = {name: one for name, one in entry.items() if name != key}
    return kept if value is None else {**kept, key: value}


BAD: list[tuple[str, Any, str]] = [
    ("screenspot", "{", "not valid JSON"),
    ("screenspot", {}, "is no list"),
    ("screenspot", [], "holds nothing to find"),
    ("screenspot", [7], "entry 0 has no"),
    ("screenspot", [SCREENSPOT[0], _without(SCREENSPOT[0], "bbox")], "entry 1 has no 'bbox'"),
    ("screenspot", [_without(SCREENSPOT[0], "bbox", [1, 2, 3])], "not four numbers"),
    ("screenspot", [_without(SCREENSPOT[0], "bbox", [1, 2, 3, True])], "not four numbers"),
    ("screenspot", [_without(SCREENSPOT[0], "bbox", [1, 2, 0, 4])], "has no area"),
    ("screenspot", [_without(SCREENSPOT[0], "bbox", [1, 2, 10**400, 4])], "has no area"),
    ("screenspot", [_without(SCREENSPOT[0], "instruction", " ")], "'instruction' is no text"),
    ("ocg", SCREENSPOT, "has no 'text'"),
    ("mind2web", SCREENSPOT, "has no 'annotation_id'"),
    ("mind2web", [_without(MIND2WEB[0], "actions", [{"bbox": {}}])], "action 0 has no 'action_uid'"),
    ("refcoco", _without(REFCOCO, "images"), "has no 'images'"),
    ("refcoco", _without(REFCOCO, "images", [_without(REFCOCO["images"][0], "id", 9)]), "not listed"),
    ("refcoco", _without(REFCOCO, "images", [{**REFCOCO["images"][0], "id": [1]}]), "'id' is no number or text"),
    ("refcoco", _without(REFCOCO, "images", [REFCOCO["images"][0]] * 2), "image .* stands there twice"),
    ("mind2web", [*MIND2WEB, *MIND2WEB], "e-1-u1 stands there twice"),
    ("coco2", SCREENSPOT, "Unknown kind of file"),
]


@pytest.mark.parametrize(("kind", "data", "message"), BAD)
def test_damaged_files(kind: str, data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match=message):
        load_targets(kind, _file(tmp_path, data))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match="does not exist"):
        load_targets("ocg", tmp_path / "none.json")


def test_objects_that_are_there_once(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "x.png"}, {"id": 2, "file_name": "y.png"}]
    boxes = [(1, 1), (1, 2), (1, 2), (2, 1)]
    data = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": index, "image_id": image, "category_id": category, "bbox": [index, 0, 5, 5]}
            for index, (image, category) in enumerate(boxes, 1)
        ],
    }
    read = single_objects("mine", load_instances(_file(tmp_path, data)))
    assert [(one.image, one.query, one.box) for one in read.targets] == [
        ("x.png", "the dog", (1, 0, 6, 5)),
        ("y.png", "the dog", (4, 0, 9, 5)),
    ]
    assert [one.image for one in read.first(1).targets] == ["x.png"]
    assert read.first(None) == read
