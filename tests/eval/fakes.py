"""A small world of pictures with known objects, and a model that answers from a hash instead of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmattn.decoding import resolve

CATEGORIES = ("person", "dog", "apple", "hot dog", "wine glass", "umbrella", "oven", "skis", "chair", "bus")


@dataclass(frozen=True)
class World:
    """Annotation files and pictures in one folder."""

    root: Path
    instances: Path
    captions: Path
    images: Path
    objects: dict[str, tuple[str, ...]]


def make_world(root: Path, count: int = 12) -> World:
    """`count` pictures with three to five kinds of objects each, the same for every call."""
    rng = np.random.default_rng(7)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    objects: dict[str, tuple[str, ...]] = {}
    folder = root / "images"
    folder.mkdir(parents=True)
    for number in range(count):
        name = f"{number:03d}.png"
        chosen = rng.choice(len(CATEGORIES), size=3 + number % 3, replace=False)
        Image.new("RGB", (40, 30), (number * 9 % 256, 80, 120)).save(folder / name)
        images.append({"id": 100 + number, "file_name": name, "width": 40, "height": 30})
        objects[name] = tuple(CATEGORIES[c] for c in chosen)
        for place, category in enumerate(chosen):
            box = [place * 8, 2, 7 + number % 3, 16]
            annotations.append(annotation(len(annotations) + 1, 100 + number, int(category) + 1, box))
        annotations.append(annotation(len(annotations) + 1, 100 + number, int(chosen[0]) + 1, [0, 20, 5, 5]))
        captions.append({"id": number + 1, "image_id": 100 + number, "caption": f"A picture with a bowl {number}."})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CATEGORIES)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    return World(
        root,
        write(root / "instances.json", instances),
        write(root / "captions.json", {"images": images, "annotations": captions}),
        folder,
        objects,
    )


def annotation(number: int, image: int, category: int, box: list[int]) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, "area": 1}


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


@dataclass(frozen=True)
class Spoken:
    """What `generate` returns."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str = "stop"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run may catch it."""


@dataclass
class FakeModel:
    """Answers depend on picture, prompt and method only, as real ones do; dies in call number `dies_in`."""

    name: str = "fake"
    dies_in: int | None = None
    error: type[BaseException] = Killed
    asked: list[tuple[str, str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    calls: int = 0

    def describe(self) -> dict[str, Any]:
        return {"model": self.name, "dtype": "float32"}

    def generate(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        *,
        method: Any,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        keys: Sequence[str],
    ) -> list[Spoken]:
        assert len(keys) == len(prompts)
        self.calls += 1
        if self.calls == self.dies_in:
            raise self.error
        self.keys.extend(keys)
        name = resolve(method).name
        self.asked.extend((name, prompt) for prompt in prompts)
        return [_speak(image, prompt, name) for image, prompt in zip(images, prompts, strict=True)]

    def attend(self, image: Image.Image, prompt: str, answer: Any = None, *, method: Any = None) -> Any:
        return FakeAttention(image.size)


@dataclass(frozen=True)
class FakeAttention:
    size: tuple[int, int]

    def heatmap(self, **_: Any) -> Any:
        return np.linspace(0, 1, self.size[0] * self.size[1], dtype=np.float32).reshape(self.size[::-1])


def _speak(image: Image.Image, prompt: str, method: str) -> Spoken:
    number = int.from_bytes(hashlib.sha256(f"{image.getpixel((0, 0))}{prompt}{method}".encode()).digest()[:4])
    if prompt.startswith("Is there"):
        text = ("Yes", "No", "Yes, there is.", "No, there is none.")[number % 4]
    else:
        a, b, c = (CATEGORIES[(number >> shift) % len(CATEGORIES)] for shift in (0, 8, 16))
        text = f"The image shows a {a}, two {b}s and a bowl beside the {c}."
    return Spoken(text, tuple(text.encode()[:5]))
