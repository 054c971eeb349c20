"""CHAIR: how many of the objects that a caption names are not in the picture. Always beside recall, F1 and length:
an empty caption hallucinates nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmattn.errors import MmattnError
from mmattn.eval.coco import Captions, Instances
from mmattn.eval.further import Further
from mmattn.eval.objects import vocabulary, word_count
from mmattn.eval.questions import draw_images
from mmattn.eval.types import Item, Record, Score, Totals, harmonic, ratio

PROMPT = "Please help me describe the image in detail."
SCORER_VERSION = "3"


class Chair(Further):
    """Captions of images whose objects are known.

    What is in a picture = its annotated objects and those its reference captions name.

    Args:
        instances: which objects are where; categories outside the 80 of COCO are ignored.
        captions: reference captions; None scores against the annotated objects alone.
        images: folder that the file names are relative to.
        seed: draws the images (500, or all when there are fewer) and their order.
        limit: keep the first so many images only.
        original: read captions as the first published script does, slips included.
    """

    def __init__(
        self,
        instances: Instances,
        captions: Captions | None,
        images: Path,
        *,
        prompt: str = PROMPT,
        max_new_tokens: int = 64,
        seed: int = 0,
        limit: int | None = None,
        original: bool = False,
    ) -> None:
        self.name = "chair"
        self.max_new_tokens = max_new_tokens
        self._words = vocabulary(original)
        self._original = original
        self._prompt = prompt
        self._folder = images
        self._ids = instances.ids
        self._sources = {
            "instances": instances.source,
            "instances_sha256": instances.sha256,
            "captions": captions and captions.source,
            "captions_sha256": captions and captions.sha256,
        }
        listed = set(self._words.categories)
        self._outside = sorted(set(instances.categories) - listed)
        if len(self._outside) == len(instances.categories):
            raise MmattnError(
                f"{instances.source} has none of the 80 COCO categories", "CHAIR is defined for those only."
            )
        self._names = draw_images(instances.images, seed)[:limit]
        texts = captions.texts if captions else {}
        if captions and not any(texts.get(name) for name in instances.images):
            raise MmattnError(
                f"{captions.source} has no caption for any image of {instances.source}",
                "Give the captions of the same images.",
            )
        self._uncaptioned = sum(not texts.get(name) for name in self._names)
        self._truth: dict[str, frozenset[str]] = {}
        for name in self._names:
            named = {mention.category for text in texts.get(name, ()) for mention in self._words.mentions(text)}
            self._truth[name] = frozenset(named | (set(instances.objects[name]) & listed))

    def __len__(self) -> int:
        return len(self._names)

    def item(self, index: int) -> Item:
        """Image `index`; `meta["objects"]` is what is in it."""
        name = self._names[index]
        return Item(name, name, self._folder / name, self._prompt, {"objects": sorted(self._truth[name])})

    def score(self, item: Item, answer: str) -> Score:
        """Verdict "clean" or "hallucinated"; details say which mention is which, with its place in the answer."""
        truth = set(item.meta["objects"])
        mentions = self._words.mentions(answer)
        wrong = [mention for mention in mentions if mention.category not in truth]
        named = {mention.category for mention in mentions}
        counts = {
            "captions": 1,
            "hallucinated_captions": int(bool(wrong)),
            "mentions": len(mentions),
            "hallucinated_mentions": len(wrong),
            "named": len(named),
            "named_true": len(named & truth),
            "true": len(truth),
            "words": word_count(answer),
        }
        details = {
            "objects": sorted(truth),
            "mentions": [
                {"word": m.word, "object": m.category, "at": [m.start, m.end], "hallucinated": m.category not in truth}
                for m in mentions
            ],
        }
        verdict = "hallucinated" if wrong else "clean"
        return Score(verdict, {name: float(count) for name, count in counts.items()}, details)

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """CHAIR_i counts every mention; precision and recall count each kind of object once per image."""
        precision = ratio(totals["named_true"], totals["named"])
        recall = ratio(totals["named_true"], totals["true"])
        return {
            "chair_i": ratio(totals["hallucinated_mentions"], totals["mentions"]),
            "chair_s": ratio(totals["hallucinated_captions"], totals["captions"]),
            "recall": recall,
            "precision": precision,
            "f1": harmonic(precision, recall),
            "length": ratio(totals["words"], totals["captions"]),
        }

    def describe(self) -> dict[str, Any]:
        """Scorer and table versions, sizes, digests of the questions with their ground truth and of the image list."""
        return {
            "benchmark": "CHAIR",
            "scorer": {
                "name": "chair",
                "version": SCORER_VERSION,
                "synonyms": self._words.version,
                "strict_original": self._original,
            },
            "prompt": self._prompt,
            "images": len(self._names),
            "images_without_captions": self._uncaptioned,
            "categories_outside": self._outside,
            "max_new_tokens": self.max_new_tokens,
            **self._sources,
            "questions_sha256": hashlib.sha256(self._listing().encode()).hexdigest(),
            "images_sha256": hashlib.sha256("\n".join(self._names).encode()).hexdigest(),
        }

    def extras(self, records: Sequence[Record]) -> dict[str, Any]:
        """By object: mentions, those in pictures without it, pictures with it, and those where it was named."""
        table = {
            name: dict.fromkeys(("mentions", "hallucinated", "present", "found"), 0) for name in self._words.categories
        }
        for record in records:
            mentions, objects = record.details["mentions"], record.details["objects"]
            for one in mentions:
                table[one["object"]]["mentions"] += 1
                table[one["object"]]["hallucinated"] += one["hallucinated"]
            for name in objects:
                table[name]["present"] += 1
                table[name]["found"] += any(one["object"] == name for one in mentions)
        ranked = sorted(table.items(), key=lambda pair: (-pair[1]["hallucinated"], pair[0]))
        worst = [
            f"{name} {one['hallucinated']} of {one['mentions']}" for name, one in ranked[:5] if one["hallucinated"]
        ]
        notes = [f"named most often where they are not: {', '.join(worst)} mentions"] if worst else []
        return {"objects": {name: one for name, one in ranked if any(one.values())}, "notes": notes}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """JSON lines {image_id, caption}, as CHAIR scripts read them."""
        lines = ({"image_id": self._ids.get(one.image, one.image), "caption": one.answer} for one in records)
        return {"captions.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)}

    def files(self) -> dict[str, str]:
        """The images with what is in them, one JSON object a line."""
        return {f"questions-{self.name}.jsonl": self._listing()}

    def _listing(self) -> str:
        lines = ({"image": name, "objects": sorted(self._truth[name])} for name in self._names)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
