"""MMHal-Bench: open questions that another model judges. Asked here, written in its form; judging is the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.listed import Entry, ListBenchmark, json_list, rule
from mmattn.eval.objects import word_count
from mmattn.eval.rows import Fields, Listed, load
from mmattn.eval.types import Item, Record, Score, Totals, ratio

FORM = "The file is a list of {question_type, question_topic, image_id, image_src, image_content, question, gt_answer}."


class MmHal(ListBenchmark):
    """MMHal-Bench's 96 questions."""

    title = "MMHal-Bench"
    scorer = rule("none", "1", "answers are for a judge of your choice")
    longest = 256

    def score(self, item: Item, answer: str) -> Score:
        """No verdict; its length alone."""
        return Score("unjudged", {"answers": 1.0, "words": float(word_count(answer))}, dict(item.meta))

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Length in words."""
        return {"length": ratio(totals["words"], totals["answers"])}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """The template with `model_answer` filled in, as the public judging script reads it."""
        return {"response.json": json_list([{**self.by_id[one.id].raw, "model_answer": one.answer} for one in records])}


def load_mmhal(path: Path) -> Listed[Entry]:
    """Read response_template.json; pictures are called as in `image_src`.

    Raises:
        MmattnError: missing file, no JSON, or no usable entry.
    """
    return load(path, _parse, lambda entry: f"the question {entry.prompt!r} about {entry.image}", FORM)


def _parse(fields: Fields) -> Entry:
    image, question = fields.text("image_src").rsplit("/", 1)[-1], fields.text("question")
    meta = {"type": fields.text("question_type"), "gt_answer": fields.text("gt_answer")}
    return Entry(f"{fields.name('image_id')} {question}", image, question, meta, fields.values)
