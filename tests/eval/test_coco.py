from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmattn.errors import MmattnError
from mmattn.eval.coco import load_captions, load_instances
from tests.eval.fakes import World, write

GOOD: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 20}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 6, "bbox": [1, 2, 3, 4]},
        {"id": 11, "image_id": 1, "category_id": 5},
        {"id": 12, "image_id": 1, "category_id": 6, "bbox": [5, 5, 1, 1]},
    ],
}
CAPTIONS: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "A dog."}, {"id": 2, "image_id": 1, "caption": ""}],
}

Edit = Callable[[dict[str, Any]], object]


def entry(key: str, index: int, **values: Any) -> Edit:
    return lambda data: data[key][index].update(values)


def test_what_a_good_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_instances(write(tmp_path / "i.json", GOOD))
    assert data.images == ("a.jpg", "b.jpg")
    assert data.objects == {"a.jpg": ("cat", "dog"), "b.jpg": ()}, "each once, in the order of the file"
    assert data.boxes["a.jpg"] == {"cat": ((1, 2, 4, 6), (5, 5, 6, 6)), "dog": ()}
    assert data.sizes == {"a.jpg": (10, 20)}
    assert data.categories == ("dog", "cat")
    assert load_captions(write(tmp_path / "c.json", CAPTIONS)).texts == {"a.jpg": ("A dog.", "")}
    assert capsys.readouterr() == ("", ""), "pycocotools prints; the library must not"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("images"), "has no 'images'"),
        (lambda d: d.pop("annotations"), "has no 'annotations'"),
        (lambda d: d.pop("categories"), "has no 'categories'"),
        (lambda d: d.update(images={}), "'images' is an object"),
        (lambda d: d.update(annotations=None), "'annotations' is null"),
        (lambda d: d.update(images=[], annotations=[]), "lists no images"),
        (lambda d: d["images"].append(7), "images[2] is the number 7"),
        (lambda d: d["images"][1].pop("id"), "images[1] has no 'id'"),
        (entry("images", 0, id="1"), "images[0]: 'id' is the text '1'"),
        (entry("images", 0, id=1.0), "images[0]: 'id' is the number 1.0"),
        (entry("images", 0, id=True), "images[0]: 'id' is true or false"),
        (entry("images", 1, id=1), "images[1] repeats id 1 of images[0]"),
        (entry("images", 1, file_name="a.jpg"), "images[1] repeats file_name 'a.jpg' of images[0]"),
        (entry("images", 1, file_name=""), "images[1]: 'file_name' is empty"),
        (entry("images", 1, file_name=None), "images[1]: 'file_name' is null"),
        (entry("categories", 1, id=5), "categories[1] repeats id 5 of categories[0]"),
        (entry("categories", 1, name="dog"), "categories[1] repeats name 'dog' of categories[0]"),
        (entry("annotations", 2, id=10), "annotations[2] repeats id 10 of annotations[0]"),
        (lambda d: d["annotations"][1].pop("image_id"), "annotations[1] has no 'image_id'"),
        (entry("annotations", 1, image_id=99), "annotations[1] (id 11) refers to image 99"),
        (entry("annotations", 1, category_id=99), "annotations[1] (id 11) refers to category 99"),
        (entry("annotations", 0, bbox=[1, 2, 3]), "annotations[0]: 'bbox' is not four numbers"),
        (entry("annotations", 0, bbox=[1, 2, 3, "4"]), "annotations[0]: 'bbox' is not four numbers"),
        (entry("annotations", 0, bbox=7), "annotations[0]: 'bbox' is not four numbers"),
        (entry("annotations", 0, bbox=[10**400, 0, 1, 1]), "annotations[0]: 'bbox' is not four numbers"),
        (entry("annotations", 0, bbox=[10**308, 0, 10**308, 1]), "annotations[0]: 'bbox' is not four numbers"),
        (entry("annotations", 0, bbox=[0, 0, float("nan"), 1]), "annotations[0]: 'bbox' is not four numbers"),
        (entry("annotations", 0, bbox=[0, 0, float("inf"), 1]), "annotations[0]: 'bbox' is not four numbers"),
        (entry("images", 0, file_name="\ud800.jpg"), "images[0]: 'file_name' has half a surrogate pair"),
        (entry("categories", 0, name="d\udc00g"), "categories[0]: 'name' has half a surrogate pair"),
    ],
)
def test_malformed_instances(edit: Edit, message: str, tmp_path: Path) -> None:
    data = copy.deepcopy(GOOD)
    edit(data)
    with pytest.raises(MmattnError, match=re.escape(message)) as caught:
        load_instances(write(tmp_path / "bad.json", data))
    assert "bad.json" in caught.value.message
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["annotations"][1].pop("caption"), "annotations[1] has no 'caption'"),
        (entry("annotations", 1, caption="\udfff"), "annotations[1]: 'caption' has half a surrogate pair"),
        (entry("annotations", 1, caption=["a"]), "annotations[1]: 'caption' is a list"),
        (entry("annotations", 1, image_id=4), "refers to image 4"),
        (entry("annotations", 1, id=1), "annotations[1] repeats id 1"),
    ],
)
def test_malformed_captions(edit: Edit, message: str, tmp_path: Path) -> None:
    data = copy.deepcopy(CAPTIONS)
    edit(data)
    with pytest.raises(MmattnError, match=re.escape(message)):
        load_captions(write(tmp_path / "bad.json", data))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" + b"9" * 5000 + b"]", "not valid JSON"),
        (b'{"images": [', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "holds a list, not a COCO annotation file"),
        (b"null", "holds null"),
    ],
)
def test_files_that_are_no_annotations(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(raw)
    for load in (load_instances, load_captions):
        with pytest.raises(MmattnError, match=message):
            load(path)


@pytest.mark.parametrize("size", [(10**400, 5), (5, -3), (0, 5), (True, 5), (5.0, 5), ("5", 5)])
def test_a_size_that_is_none_is_unknown(size: tuple[Any, Any], tmp_path: Path) -> None:
    data = copy.deepcopy(GOOD)
    entry("images", 0, width=size[0], height=size[1])(data)
    assert load_instances(write(tmp_path / "i.json", data)).sizes == {}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match=r"none\.json does not exist"):
        load_instances(tmp_path / "none.json")
    with pytest.raises(MmattnError, match="does not exist"):
        load_instances(tmp_path)


def test_the_digest_is_of_the_file(world: World, tmp_path: Path) -> None:
    copied = write(tmp_path / "i.json", json.loads(world.instances.read_text()))
    assert load_instances(copied).sha256 == load_instances(world.instances).sha256
    changed = json.loads(world.instances.read_text())
    changed["annotations"].pop()
    assert load_instances(write(copied, changed)).sha256 != load_instances(world.instances).sha256
