"""AMBER: descriptions and yes/no questions about the same pictures; the one who finds a hallucination says "No"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmattn.errors import MmattnError
from mmattn.eval.listed import Entry, ListBenchmark, json_list
from mmattn.eval.listed import rule as named
from mmattn.eval.nouns import Association
from mmattn.eval.rows import Fields, Listed, UnusableError, load
from mmattn.eval.scorers import Scorer, Verdict
from mmattn.eval.types import Item, Record, Score, Totals, ratio
from mmattn.eval.yesno import cell, rates

FORM = (
    "AMBER's data folder has annotations.json, relation.json, safe_words.txt and query/query_all.json, which is a list "
    "of {id, image, query}."
)
GENERATIVE = "generative"


def exactly(answer: str, label: str) -> Verdict:  # noqa: ARG001
    """AMBER's own rule: the answer is "Yes" or "No", capital and all, and nothing else."""
    return "yes" if answer == "Yes" else "no" if answer == "No" else "unparsable"


EXACTLY = Scorer("amber", "1", "AMBER inference.py", exactly)


class Amber(ListBenchmark):
    """AMBER, or the part of it that the query file asks.

    Args:
        listed: from `load_amber`.
        words: from `load_association`.
        rule: how yes/no answers are read.
    """

    title = "AMBER"
    longest = 256

    def __init__(
        self, listed: Listed[Entry], images: Path, words: Association, *, rule: Scorer = EXACTLY, **options: Any
    ) -> None:
        super().__init__(listed, images, **options)
        self.scorer = named(
            f"amber-words, {rule.name}",
            f"2, {rule.version}",
            f"nouns by AMBER's own lists, without spaCy's similarity; {rule.source}",
        )
        self._words = words
        self._rule = rule

    def score(self, item: Item, answer: str) -> Score:
        """A description is clean or hallucinated; a question is answered yes, no or unparsably."""
        if item.meta["category"] == GENERATIVE:
            return self._description(item.meta, answer)
        label = item.meta["truth"]
        verdict = self._rule.parse(answer, label)
        return Score(verdict, {cell(label, verdict): 1.0}, {**item.meta, "label": label, "correct": verdict == label})

    def _description(self, meta: Mapping[str, Any], answer: str) -> Score:
        named = self._words.read(answer, meta["truth"], meta["hallu"])
        counts = {
            "descriptions": 1,
            "hallucinated_descriptions": int(bool(named.wrong)),
            "nouns": len(named.words),
            "hallucinated_nouns": len(named.wrong),
            "objects": len(meta["truth"]),
            "covered_objects": len(named.covered),
            "tempting": len(meta["hallu"]),
            "named_tempting": len(named.tempted),
        }
        details = {**meta, "named": list(named.words), "hallucinated": list(named.wrong)}
        verdict = "hallucinated" if named.wrong else "clean"
        return Score(verdict, {name: float(count) for name, count in counts.items()}, details)

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """CHAIR, Cover, Hal and Cog of descriptions; rates of questions with "no" as the positive class."""
        found: dict[str, NDArray[np.float64]] = {}
        if "descriptions" in totals:
            found["CHAIR"] = ratio(totals["hallucinated_nouns"], totals["nouns"])
            found["Cover"] = ratio(totals["covered_objects"], totals["objects"])
            found["Hal"] = ratio(totals["hallucinated_descriptions"], totals["descriptions"])
            found["Cog"] = ratio(totals["named_tempting"], totals["tempting"])
        if any(name.startswith(("true_", "false_", "lost_")) for name in totals):
            asked = rates(totals, positive="no")
            found |= {name: asked[name] for name in ("accuracy", "precision", "recall", "f1")}
        if "CHAIR" in found and "f1" in found:
            found["AMBER score"] = 100 * (1 - found["CHAIR"] + found["f1"]) / 2
        return found

    def extras(self, records: Sequence[Record]) -> dict[str, Any]:
        """What no rule could read."""
        unparsable = sum(record.verdict == "unparsable" for record in records)
        note = f'{unparsable} answers are not exactly "Yes" or "No" and count as wrong; --scorer reads them otherwise'
        return {"notes": [note] if unparsable and self._rule is EXACTLY else []}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """A list of {id, response}; yes/no answers in the words that AMBER's script insists on, if a rule read them."""
        words = {"yes": "Yes", "no": "No"}
        return {
            "answers.json": json_list(
                [{"id": int(one.id), "response": words.get(one.verdict, one.answer)} for one in records]
            )
        }


def load_amber(folder: Path, queries: Path | None = None) -> Listed[Entry]:
    """Read AMBER's data folder.

    Args:
        folder: with annotations.json, and query/query_all.json unless another file is named.
        queries: what to ask, such as query/query_generative.json.

    Raises:
        MmattnError: a missing file, no JSON, or no usable query.
    """
    notes = load(folder / "annotations.json", _note, lambda note: f"id {note[0]}", FORM)
    truth = dict(notes.entries)

    def parse(fields: Fields) -> Entry:
        number = fields.whole("id")
        if number not in truth:
            raise UnusableError(f"id {number} is not among the annotations")
        return Entry(str(number), fields.text("image"), fields.text("query"), truth[number])

    path = queries or folder / "query" / "query_all.json"
    listed = load(path, parse, lambda entry: f"id {entry.id}", FORM)
    return replace(listed, problems=(*(f"annotations.json {one}" for one in notes.problems), *listed.problems))


def load_association(folder: Path) -> Association:
    """Read relation.json and safe_words.txt, AMBER's lists of words."""
    path, safe = folder / "relation.json", folder / "safe_words.txt"
    for one in (path, safe):
        if not one.is_file():
            raise MmattnError(f"File {one} does not exist", FORM)
    try:
        relation = json.loads(path.read_text(encoding="utf-8"))
        lists = {str(word): tuple(map(str, others)) for word, others in relation.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise MmattnError(f"{path} is not valid ({error})", 'It is {"word": ["other word", ...], ...}.') from error
    return Association(lists, tuple(safe.read_text(encoding="utf-8").split("\n")))


def _note(fields: Fields) -> tuple[int, dict[str, Any]]:
    kind = fields.text("type").removeprefix("discriminative-")
    kind = "existence" if kind == "hallucination" else kind
    if kind != GENERATIVE:
        return fields.whole("id"), {"category": kind, "truth": fields.one_of("truth", ("yes", "no"))}
    lists = {name: fields.values.get(name) for name in ("truth", "hallu")}
    for name, words in lists.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UnusableError(f"no usable list '{name}'")
    return fields.whole("id"), {"category": kind, **lists}
