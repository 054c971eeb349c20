"""TextVQA: short answers about text in pictures, compared with ten people's by the VQA accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.listed import Entry, ListBenchmark, json_list, rule
from mmattn.eval.normalise import normalise
from mmattn.eval.rows import Fields, Listed, UnusableError, load
from mmattn.eval.types import Item, Record, Score, Totals, ratio

SUFFIX = "\nAnswer the question using a single word or phrase."
FORM = 'The file is {"data": [{"question_id": 1, "image_id": "a1b2", "question": "...", "answers": [ten texts]}, ...]}.'
PEOPLE = 10


class TextVqa(ListBenchmark):
    """TextVQA's validation questions."""

    title = "TextVQA"
    scorer = rule("vqa-accuracy", "2", "MMF m4c_evaluators.py: EvalAI normaliser, leave-one-out")
    longest = 16

    def score(self, item: Item, answer: str) -> Score:
        """The share of the credit, 0 to 1; verdict "right" where it is whole."""
        credit = accuracy(answer, item.meta["answers"])
        verdict = "right" if credit == 1 else "partly" if credit else "wrong"
        return Score(verdict, {"asked": 1.0, "credit": credit}, {**item.meta, "read": normalise(answer)})

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Mean credit."""
        return {"accuracy": ratio(totals["credit"], totals["asked"])}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """A list of {question_id, answer}, as EvalAI takes it."""
        return {"answers.json": json_list([{"question_id": int(one.id), "answer": one.answer} for one in records])}


def accuracy(answer: str, people: Sequence[str]) -> float:
    """Mean over the ten people of min(1, how many of the nine others gave this answer / 3)."""
    said = normalise(answer)
    same = [normalise(one) == said for one in people]
    total = sum(same)
    if not total:
        return 0.0
    return sum(min(1.0, (total - mine) / 3) for mine in same) / len(same)


def load_textvqa(path: Path) -> Listed[Entry]:
    """Read TextVQA_0.5.1_val.json, or a list of such entries.

    Raises:
        MmattnError: missing file, no JSON, or no usable entry.
    """
    return load(path, _parse, lambda entry: f"question_id {entry.id}", FORM, under="data")


def _parse(fields: Fields) -> Entry:
    answers = fields.texts("answers")
    if len(answers) != PEOPLE:
        raise UnusableError(f"{len(answers)} answers where {PEOPLE} are needed")
    image = fields.name("image_id")
    name = image if image.lower().endswith((".jpg", ".jpeg", ".png")) else f"{image}.jpg"
    prompt = fields.text("question") + SUFFIX
    return Entry(str(fields.whole("question_id")), name, prompt, {"answers": list(answers)})
