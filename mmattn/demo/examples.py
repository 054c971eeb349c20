"""Example pictures whose content is known: scenes, and a screenshot-like window made of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmattn import scenes
from mmattn.demo.screen import Boxes, screenshot
from mmattn.demo.state import Picture
from mmattn.eval import Chair, Item, load_captions, load_instances
from mmattn.images import open_image

COUNT = 16
QUESTIONS = ("Describe the image.", "Is there a {object} in the image?", "Where is the {object}?")


@dataclass(frozen=True)
class Mention:
    """An object that a text names: text[start:end]."""

    object: str
    start: int
    end: int
    there: bool


@dataclass(frozen=True)
class Example:
    """A picture with what is in it.

    Attributes:
        boxes: XYXY pixels of each object, by category.
        lines: Python that gives the picture; "" where its file has to come along.
    """

    picture: Picture
    boxes: Boxes
    objects: frozenset[str]
    lines: str = ""


class Examples:
    """The bundled examples, and the truth about a picture that is one of them."""

    def __init__(self, count: int = COUNT) -> None:
        split = scenes.dataset("val", count=count)
        instances = load_instances(split.instances)
        self._chair = Chair(instances, load_captions(split.captions), split.images)
        truth = {item.id: frozenset(item.meta["objects"]) for item in map(self._chair.item, range(len(self._chair)))}
        self.all: list[Example] = []
        for name in instances.images:
            picture = Picture(open_image(split.images / name), name)
            lines = f'picture = mmattn.scenes.dataset("val", count={count}).images / "{name}"'
            self.all.append(Example(picture, instances.boxes[name], truth[name], lines))
        image, boxes = screenshot([(one.picture.image, one.boxes) for one in self.all])
        self.screen = Example(Picture(image, "screenshot.png"), boxes, frozenset(boxes))
        self._known = {_digest(one.picture.image): one for one in [*self.all, self.screen]}

    def find(self, picture: Picture | None) -> Example | None:
        """The example that this picture is, pixel by pixel."""
        return self._known.get(_digest(picture.image)) if picture is not None else None

    def mentions(self, picture: Picture | None, text: str) -> list[Mention]:
        """Objects that `text` names, and whether they are in the picture; none where the truth is not known."""
        example = self.find(picture)
        if example is None:
            return []
        item = Item("", "", Path(), "", {"objects": sorted(example.objects)})
        found = self._chair.score(item, text).details["mentions"]
        return [Mention(one["object"], one["at"][0], one["at"][1], not one["hallucinated"]) for one in found]


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
