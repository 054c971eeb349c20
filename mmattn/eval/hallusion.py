"""HallusionBench: yes/no questions about pictures and edited pictures. The part that a rule can score: questions with
a picture, whose answer is read as yes or no instead of judged by another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.listed import Entry, ListBenchmark, json_list, with_groups
from mmattn.eval.listed import rule as named
from mmattn.eval.rows import Fields, Listed, load, rejected
from mmattn.eval.scorers import Scorer, scorer
from mmattn.eval.types import Item, Record, Score, Totals, ratio

FORM = (
    "The file is a list of {category, subcategory, visual_input, set_id, figure_id, question_id, question, gt_answer, "
    "filename}."
)
EDITED = "2"
"""What `visual_input` says of an edited picture; "1" is a picture as it was found, "0" is none."""
_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input")


class HallusionBench(ListBenchmark):
    """The questions with a picture.

    Args:
        listed: from `load_hallusion`.
        rule: how answers are read; the first word that is yes or no.
    """

    title = "HallusionBench"
    longest = 64

    def __init__(self, listed: Listed[Entry], images: Path, *, rule: Scorer | None = None, **options: Any) -> None:
        seen = [bool(entry.image) for entry in listed.entries]
        self._blind = seen.count(False)
        kept = [pair for pair, one in zip(zip(listed.entries, listed.places, strict=True), seen, strict=True) if one]
        super().__init__(
            replace(listed, entries=tuple(e for e, _ in kept), places=tuple(p for _, p in kept)), images, **options
        )
        self.rule = rule or scorer("mitigv")
        self.scorer = named(self.rule.name, self.rule.version, self.rule.source)

    def score(self, item: Item, answer: str) -> Score:
        """Verdict yes, no or unparsable, which is wrong."""
        verdict = self.rule.parse(answer, item.meta["label"])
        correct = verdict == item.meta["label"]
        return Score(verdict, {"asked": 1.0, "right": float(correct)}, {**item.meta, "correct": correct})

    def join(self, records: Sequence[Record]) -> Sequence[Record]:
        """Figures and questions that are wholly right. The bootstrap draws sets: what belongs together stays so."""
        joined = with_groups(records, self.entries, _figure, "figures")
        joined = with_groups(joined, self.entries, _pair, "pairs")
        joined = with_groups(joined, self.entries, _original, "easy")
        joined = with_groups(joined, self.entries, _edited, "hard")
        return [replace(one, image=_key(one.details, "category", "subcategory", "set_id")) for one in joined]

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Per question (aAcc), per question over its figures (qAcc), per figure over its questions (fAcc).

        The easy and the hard aAcc are, as the public script has them, per question over its original, or edited,
        figures.
        """
        zero = np.zeros_like(totals["asked"])

        def share(right: str, whole: str) -> NDArray[np.float64]:
            return ratio(totals.get(right, zero), totals.get(whole, zero))

        return {
            "aAcc": share("right", "asked"),
            "qAcc": share("pairs_right", "pairs"),
            "fAcc": share("figures_right", "figures"),
            "easy aAcc": share("easy_right", "easy"),
            "hard aAcc": share("hard_right", "hard"),
        }

    def extras(self, records: Sequence[Record]) -> dict[str, Any]:
        """What no rule could read, and what is not asked."""
        lost = sum(record.verdict == "unparsable" for record in records)
        return {"notes": [f"{lost} answers are neither yes nor no and count as wrong"] if lost else []}

    def describe(self) -> dict[str, Any]:
        """As every list; `without_picture` questions are not asked."""
        return {**super().describe(), "without_picture": self._blind, "rejected": rejected(self._listed)}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """The entries with `model_prediction`, as the public script reads them."""
        return {
            "answers.json": json_list([{**self.by_id[one.id].raw, "model_prediction": one.answer} for one in records])
        }


def load_hallusion(path: Path) -> Listed[Entry]:
    """Read HallusionBench.json. Entries without a picture have an empty `image`.

    Raises:
        MmattnError: missing file, no JSON, or no usable entry.
    """
    return load(path, _parse, lambda entry: f"question {entry.id}", FORM)


def _parse(fields: Fields) -> Entry:
    meta: dict[str, Any] = {name: fields.name(name) for name in _KEYS}
    label = {"1": "yes", "0": "no"}[fields.one_of("gt_answer", ("0", "1"))]
    image = ""
    if meta["visual_input"] != "0":
        image = fields.text("filename").removeprefix("./").removeprefix("hallusion_bench/")
    name = "_".join(meta[name] for name in _KEYS[:-1])
    return Entry(name, image, fields.text("question"), {**meta, "label": label}, fields.values)


def _key(meta: Mapping[str, Any], *names: str) -> str:
    return "_".join(meta[name] for name in names)


def _figure(meta: Mapping[str, Any]) -> str:
    return _key(meta, "category", "subcategory", "set_id", "figure_id")


def _pair(meta: Mapping[str, Any]) -> str:
    return _key(meta, "category", "subcategory", "set_id", "question_id")


def _original(meta: Mapping[str, Any]) -> str:
    return "" if meta["visual_input"] == EDITED else _pair(meta)


def _edited(meta: Mapping[str, Any]) -> str:
    return _pair(meta) if meta["visual_input"] == EDITED else ""
