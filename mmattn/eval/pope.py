"""POPE: does the model say yes to objects that are not there?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.coco import Instances
from mmattn.eval.questions import Question, dumps
from mmattn.eval.scorers import Scorer, scorer
from mmattn.eval.types import Item, Score, Totals, harmonic, ratio


class Pope:
    """One POPE question list.

    Args:
        name: the list's name, such as "random"; the benchmark is then "pope-random".
        questions: from `questions.build` or `questions.read`.
        images: folder that the image names of the questions are relative to.
        instances: where objects are, if known; lets a picture be drawn of a question with one clear object.
        rule: how answers are read.
        limit: keep the questions of the first so many images only.
    """

    def __init__(
        self,
        name: str,
        questions: Sequence[Question],
        images: Path,
        *,
        instances: Instances | None = None,
        rule: Scorer | None = None,
        max_new_tokens: int = 8,
        limit: int | None = None,
    ) -> None:
        self.name = f"pope-{name}"
        self.max_new_tokens = max_new_tokens
        self.rule = rule or scorer()
        names = list(dict.fromkeys(question.image for question in questions))[:limit]
        kept = set(names)
        self._questions = [question for question in questions if question.image in kept]
        self._names = names
        self._folder = images
        self._instances = instances

    def __len__(self) -> int:
        return len(self._questions)

    def item(self, index: int) -> Item:
        """Question `index`; `meta` holds its label, its object, and the object's boxes if they are known."""
        question = self._questions[index]
        meta: dict[str, Any] = {"label": question.label, "object": question.object}
        if self._instances and question.image in self._instances.boxes:
            meta["boxes"] = self._instances.boxes[question.image].get(question.object, ())
            meta["size"] = self._instances.sizes.get(question.image)
        return Item(str(question.question_id), question.image, self._folder / question.image, question.text, meta)

    def score(self, item: Item, answer: str) -> Score:
        """Verdict yes, no or unparsable, counted into the cell of the confusion table that the label gives."""
        label = item.meta["label"]
        verdict = self.rule.parse(answer, label)
        cell = {
            ("yes", "yes"): "true_yes",
            ("no", "no"): "true_no",
            ("no", "yes"): "false_yes",
            ("yes", "no"): "false_no",
        }.get((label, verdict), f"lost_{label}")
        return Score(verdict, {cell: 1.0}, {"label": label, "correct": verdict == label})

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Rates with "yes" as the positive class; an unparsable answer is wrong, and neither a yes nor a no."""
        zero = np.zeros_like(next(iter(totals.values()))) if totals else np.zeros(())

        def total(*names: str) -> NDArray[np.float64]:
            return np.asarray(sum((totals.get(name, zero) for name in names), zero))

        precision = ratio(total("true_yes"), total("true_yes", "false_yes"))
        recall = ratio(total("true_yes"), total("true_yes", "false_no", "lost_yes"))
        everything = total("true_yes", "false_yes", "true_no", "false_no", "lost_yes", "lost_no")
        return {
            "accuracy": ratio(total("true_yes", "true_no"), everything),
            "precision": precision,
            "recall": recall,
            "f1": harmonic(precision, recall),
            "yes_ratio": ratio(total("true_yes", "false_yes"), everything),
            "false_yes_rate": ratio(total("false_yes"), total("false_yes", "true_no", "lost_no")),
        }

    def describe(self) -> dict[str, Any]:
        """Scorer, sizes and digests; `misspelt` counts questions that say "imange", as some published files do."""
        labels = [question.label for question in self._questions]
        return {
            "benchmark": "POPE",
            "scorer": {"name": self.rule.name, "version": self.rule.version, "source": self.rule.source},
            "questions": len(self._questions),
            "images": len(self._names),
            "labels": {label: labels.count(label) for label in ("yes", "no")},
            "misspelt": sum("imange" in question.text for question in self._questions),
            "max_new_tokens": self.max_new_tokens,
            "annotations_sha256": self._instances.sha256 if self._instances else None,
            "questions_sha256": hashlib.sha256(dumps(self._questions).encode()).hexdigest(),
            "images_sha256": hashlib.sha256("\n".join(self._names).encode()).hexdigest(),
        }

    def files(self) -> dict[str, str]:
        """The question list in its published format."""
        return {f"questions-{self.name}.jsonl": dumps(self._questions)}
