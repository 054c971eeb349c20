"""POPE: does the model say yes to objects that are not there?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.coco import Instances
from mmattn.eval.disagreement import disagreement, ranking, told
from mmattn.eval.further import Further
from mmattn.eval.questions import Question, dumps
from mmattn.eval.rows import Listed, placed, rejected
from mmattn.eval.scorers import LOGITS, Scorer, scorer
from mmattn.eval.types import Item, Record, Score, Totals
from mmattn.eval.yesno import cell, rates


class Pope(Further):
    """One POPE question list.

    Args:
        name: the list's name, such as "random"; the benchmark is then "pope-random".
        questions: from `build`, or `load_questions` for a published file.
        images: folder that the image names of the questions are relative to.
        instances: where objects are, if known; lets a picture be drawn of a question with one clear object.
        rule: how answers are read.
        limit: keep the questions of the first so many images only.
    """

    def __init__(
        self,
        name: str,
        questions: Sequence[Question] | Listed[Question],
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
        self._listed = questions if isinstance(questions, Listed) else None
        questions = questions.entries if isinstance(questions, Listed) else questions
        names = list(dict.fromkeys(question.image for question in questions))[:limit]
        kept = set(names)
        self._questions = [question for question in questions if question.image in kept]
        self._names = names
        self._places = placed(self._listed, lambda question: question.question_id) if self._listed else {}
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
        where = self._places.get(question.question_id, "")
        path = self._folder / question.image
        return Item(str(question.question_id), question.image, path, question.text, meta, where)

    def score(self, item: Item, answer: str) -> Score:
        """Verdict yes, no or unparsable, counted into the cell of the confusion table that the label gives."""
        label = item.meta["label"]
        verdict = self.rule.parse(answer, label)
        return Score(verdict, {cell(label, verdict): 1.0}, {"label": label, "correct": verdict == label})

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Rates with "yes" as the positive class; an unparsable answer is wrong, and neither a yes nor a no."""
        return rates(totals)

    def extras(self, records: Sequence[Record]) -> dict[str, Any]:
        """How far the public scorers disagree on these answers; of answers by scores, how well these rank."""
        if self.rule.name == LOGITS:
            area = ranking(records)
            return {"auc": area, "notes": [] if area is None else [f"area under the curve of Yes over No {area:.4f}"]}
        found = disagreement(records, self.rule)
        return {"scorers": found, "notes": told(found)}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """JSON lines for the official script (question, answer) and for VCD's (question_id, text)."""
        lines = (
            {"question_id": int(one.id), "question": one.prompt, "answer": one.answer, "text": one.answer}
            for one in records
        )
        return {"answers.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)}

    def describe(self) -> dict[str, Any]:
        """Scorer, sizes and digests.

        `misspelt` counts questions that say "imange", `wrong_articles` those about "a apple": some published files
        have both. `rejected` names the lines of the file that could not be used.
        """
        labels = [question.label for question in self._questions]
        return {
            "benchmark": "POPE",
            "scorer": {"name": self.rule.name, "version": self.rule.version, "source": self.rule.source},
            "questions": len(self._questions),
            "images": len(self._names),
            "labels": {label: labels.count(label) for label in ("yes", "no")},
            "misspelt": sum(question.misspelt for question in self._questions),
            "wrong_articles": sum(question.has_wrong_article for question in self._questions),
            "rejected": rejected(self._listed) if self._listed else None,
            "max_new_tokens": self.max_new_tokens,
            "annotations_sha256": self._instances.sha256 if self._instances else None,
            "questions_sha256": hashlib.sha256(dumps(self._questions).encode()).hexdigest(),
            "images_sha256": hashlib.sha256("\n".join(self._names).encode()).hexdigest(),
        }

    def files(self) -> dict[str, str]:
        """The question list in its published format."""
        return {f"questions-{self.name}.jsonl": dumps(self._questions)}
