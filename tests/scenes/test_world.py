"""The world: the same bytes from the same seed, honest annotations, and the skew that it is built for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from mmattn.eval import load_captions, load_instances
from mmattn.scenes import SceneSet, dataset
from mmattn.scenes.build import SEEDS, pictures
from mmattn.scenes.catalog import CATEGORIES, partners
from mmattn.scenes.layout import TRAIN, sample
from mmattn.scenes.render import Bank, draw, draw_batch

COUNT = 24
# Of the decoded pixels and the two annotation files of a val set of COUNT pictures.
DIGEST = "61ee71fbf766d6a778daf49486f2d93e1f62f6503afcdf68bcc514e34521683b"


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    return dataset("val", root=tmp_path_factory.mktemp("scenes"), count=COUNT)


def _digest(scenes: SceneSet) -> str:
    digest = hashlib.sha256(scenes.instances.read_bytes() + scenes.captions.read_bytes())
    for path in sorted(scenes.images.iterdir()):
        with Image.open(path) as picture:
            digest.update(np.asarray(picture).tobytes())
    return digest.hexdigest()


def test_the_same_seed_gives_the_same_set_byte_for_byte(val: SceneSet, tmp_path: Path) -> None:
    again = dataset("val", root=tmp_path, count=COUNT)
    files = sorted(path.relative_to(val.root) for path in val.root.rglob("*") if path.is_file())
    assert len(files) == COUNT + 2
    for name in files:
        assert (again.root / name).read_bytes() == (val.root / name).read_bytes()
    assert _digest(val) == DIGEST, "the world changed: raise WORLD in build.py"
    assert _digest(dataset("val", root=tmp_path, count=COUNT, seed=5)) != DIGEST


def test_a_half_made_set_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmattn.scenes.build.captions", broken)
    with pytest.raises(KeyboardInterrupt):
        dataset("val", root=tmp_path, count=2)
    assert list(tmp_path.iterdir()) == []


def test_annotations_are_the_visible_pixels(val: SceneSet, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(val.instances))
    capsys.readouterr()
    drawn = list(pictures("val", SEEDS["val"], COUNT))
    assert len(coco.imgs) == COUNT
    for number, (part, pixels, layout, row, owner) in enumerate(drawn, 1):
        image = coco.loadImgs(number)[0]
        assert image["part"] == part
        with Image.open(val.images / image["file_name"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels.permute(1, 2, 0).numpy())
        found = coco.loadAnns(coco.getAnnIds(number))
        # Every object of a val picture is annotated, with the pixels that are on top at its place.
        expected = Counter(
            (CATEGORIES[int(layout.category[row, slot])].id, (owner == slot).numpy().tobytes())
            for slot in range(7)
            if layout.category[row, slot] >= 0
        )
        assert Counter((one["category_id"], coco.annToMask(one).astype(bool).tobytes()) for one in found) == expected
        for one in found:
            mask = coco.annToMask(one)
            assert one["area"] == mask.sum()
            left, top, width, height = one["bbox"]
            rows, columns = np.nonzero(mask)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_captions_name_only_what_is_there(val: SceneSet) -> None:
    from mmattn.eval.objects import vocabulary

    words = vocabulary()
    truth, texts = load_instances(val.instances), load_captions(val.captions)
    assert set(texts.texts) == set(truth.objects)
    for name, captions in texts.texts.items():
        assert len(captions) == 5
        for caption in captions:
            assert {mention.category for mention in words.mentions(caption)} <= set(truth.objects[name])
        assert {mention.category for mention in words.mentions(captions[0])} == set(truth.objects[name])


def _together(parts: dict[str, list[set[str]]], part: str) -> float:
    """How often a paired category has its partner beside it."""
    mates = partners()
    pairs = [mates[name] in names for names in parts[part] for name in names if name in mates]
    return sum(pairs) / len(pairs)


def test_the_skew_is_in_typical_pictures_and_broken_in_the_others(tmp_path: Path) -> None:
    scenes = dataset("val", root=tmp_path, count=100)
    data = json.loads(scenes.instances.read_text())
    names = {one["id"]: one["name"] for one in data["categories"]}
    objects: dict[int, set[str]] = {one["id"]: set() for one in data["images"]}
    for one in data["annotations"]:
        objects[one["image_id"]].add(names[one["category_id"]])
    parts: dict[str, list[set[str]]] = {"typical": [], "broken": []}
    for one in data["images"]:
        parts[one["part"]].append(objects[one["id"]])
    assert [len(one) for one in parts.values()] == [50, 50]
    assert _together(parts, "typical") > 0.85
    assert _together(parts, "broken") < 0.1
    assert min(len(one) for one in objects.values()) >= 3


def test_batched_drawing_equals_drawing_one_by_one() -> None:
    """What the model was trained on is what the sets are made of."""
    layout = sample(3, torch.arange(6), TRAIN)
    bank = Bank.on("cpu")
    together, owners = draw_batch(layout, bank.pixels, bank.offsets)
    for row in range(6):
        alone, owner = draw(layout, row)
        assert torch.equal(together[row], alone)
        assert torch.equal(owners[row].long(), owner)


@pytest.mark.parametrize(("arguments", "message"), [({"split": "test"}, "unknown split"), ({"count": 0}, "at least 1")])
def test_bad_requests(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(**{"root": tmp_path, **arguments})
