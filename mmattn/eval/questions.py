"""POPE question lists: built from object annotations by the official procedure, read and written in its format.

For each image with at least three kinds of objects and each of the first three: one question about it ("yes"), then
one about an object that is not there ("no"). The three strategies differ in how the absent object is picked.
"""

from __future__ import annotations

import functools
import importlib
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmattn.errors import MmattnError, unknown
from mmattn.eval.coco import Instances
from mmattn.eval.rows import Fields, Listed, load, strictly

STRATEGIES = ("random", "popular", "adversarial")
IMAGES = 500
PER_IMAGE = 3

FORM = 'Each line is {"question_id": 1, "image": "1.jpg", "text": "Is there a dog in the image?", "label": "no"}.'

_QUESTION = re.compile(r"^is there (an?) (.+?) in the iman?ge\s*\?$", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One line of a published POPE file."""

    question_id: int
    image: str
    text: str
    label: str

    @property
    def object(self) -> str:
        """The object asked about; empty when the text is not of the usual form. "imange" is read as "image"."""
        match = _QUESTION.match(self.text.strip())
        return match.group(2) if match else ""

    @property
    def misspelt(self) -> bool:
        """Whether it says "imange", as files built by the public script do."""
        return "imange" in self.text

    @property
    def has_wrong_article(self) -> bool:
        """Whether it asks for "a apple" or "an dog"."""
        match = _QUESTION.match(self.text.strip())
        return match is not None and match.group(1).lower() != _article(match.group(2))


def ask(name: str) -> str:
    """The question about one object: "Is there a dog in the image?", with the article that the word needs."""
    return f"Is there {_article(name)} {name} in the image?"


@functools.cache
def _article(name: str) -> str:
    return str(inflector().a(name)).split(" ")[0]


def build(instances: Instances, strategy: str, seed: int = 0, images: int = IMAGES) -> list[Question]:
    """Build the questions of one strategy; the same images for every strategy of one seed.

    Args:
        instances: which objects are where.
        strategy: "random" draws the absent object from all objects of the chosen images, "popular" takes the most
            frequent one there, "adversarial" the one that most often occurs beside the object just asked about;
            none is asked about twice in one image.
        seed: draws the images and, where chance decides, the absent objects.
        images: how many images to draw; all that qualify when there are fewer.
    """
    if strategy not in STRATEGIES:
        raise unknown("POPE strategy", strategy, STRATEGIES)
    fit = [image for image in instances.images if len(instances.objects[image]) >= PER_IMAGE]
    if not fit:
        raise MmattnError(
            f"{instances.source} has no image with {PER_IMAGE} or more kinds of objects",
            "POPE questions need such images; use another annotation file.",
        )
    chosen = draw_images(fit, seed, images)
    present = {image: instances.objects[image] for image in chosen}
    rng = random.Random(f"{seed}/{strategy}")  # noqa: S311 - questions, not secrets
    frequency = Counter(name for names in present.values() for name in names)
    beside = _co_occurrence(present)
    questions: list[Question] = []
    for image, names in present.items():
        taken = set(names)
        for name in names[:PER_IMAGE]:
            ranked = {"popular": _ranked(frequency), "adversarial": _ranked(beside[name])}.get(strategy, [])
            absent = _absent(ranked, list(frequency), instances, taken, rng, image)
            taken.add(absent)
            for thing, label in ((name, "yes"), (absent, "no")):
                questions.append(Question(len(questions) + 1, image, ask(thing), label))
    return questions


def draw_images(images: Sequence[str], seed: int, count: int = IMAGES) -> list[str]:
    """So many images, or all if there are fewer, in an order that the seed decides."""
    rng = random.Random(f"{seed}/images")  # noqa: S311 - a sample, not a secret
    return rng.sample(images, min(count, len(images)))


def _absent(
    ranked: Sequence[str], pool: Sequence[str], instances: Instances, taken: set[str], rng: random.Random, image: str
) -> str:
    """First free one of the ranking, else a random free one of the pool, else of all categories of the file."""
    for name in ranked:
        if name not in taken:
            return name
    for names in (pool, sorted(instances.categories)):
        free = [name for name in names if name not in taken]
        if free:
            return rng.choice(free)
    raise MmattnError(
        f"{instances.source}: no absent object is left to ask about for image {image}",
        "POPE needs more categories than any one image shows, by three or more.",
    )


def _ranked(counts: Counter[str]) -> list[str]:
    return [name for name, _ in counts.most_common()]  # ties keep the order of first appearance, as in the original


def _co_occurrence(present: Mapping[str, Sequence[str]]) -> dict[str, Counter[str]]:
    beside: dict[str, Counter[str]] = {}
    for names in present.values():
        for name in names:
            beside.setdefault(name, Counter()).update(other for other in names if other != name)
    return beside


def dumps(questions: Sequence[Question]) -> str:
    """JSON lines in the published format."""
    return "".join(json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions)


def load_questions(path: Path) -> Listed[Question]:
    """Read a published question file (COCO, A-OKVQA, GQA): JSON lines or one list. Unusable lines are told apart.

    Raises:
        MmattnError: missing file, or no usable line.
    """
    return load(path, _parse, lambda question: f"question_id {question.question_id}", FORM)


def read(path: Path) -> list[Question]:
    """The same, where every line must be usable; the error names the first that is not."""
    return list(strictly(load_questions(path), FORM))


def _parse(entry: Fields) -> Question:
    label = entry.one_of("label", ("yes", "no"))
    return Question(entry.whole("question_id"), entry.text("image"), entry.text("text"), label)


@functools.cache
def inflector() -> Any:
    """The engine of inflect, made once: that takes seconds."""
    try:
        return importlib.import_module("inflect").engine()
    except ImportError as error:
        raise MmattnError("Evaluation needs inflect", 'Install it with: pip install "mmattn[eval]"') from error
