"""MMBench and other multiple-choice tables in its form: a row per question, pictures inside the table."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.listed import Entry, ListBenchmark, rule, with_groups
from mmattn.eval.rows import Fields, Listed, UnusableError, load
from mmattn.eval.types import Item, Record, Score, Totals, ratio

FORM = "The table has the columns index, question, A, B, ..., answer and image, which holds a picture in base64."
ASK = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGH"
NOTHING = ("", "nan", "none")
"""How the tables write that there is no hint or no such option, in any letters, as LLaVA's script reads them."""
ROUND = 1_000_000
"""Rows whose index differs by multiples of this are one question with its options turned."""
_REFERENCE = 64
"""A shorter text in the image column is the index of the row that holds the picture."""
_LETTER = re.compile(r"^\W*(?:(?:the )?(?:correct )?(?:answer|option)(?: is)?\W*)?\(?([A-H])(?:\W|$)", re.IGNORECASE)


class MmBench(ListBenchmark):
    """Multiple choice; a question whose options are turned is right if it is right in every turn."""

    title = "MMBench"
    scorer = rule("letter", "1", "mmattn: the leading letter, else the one option named")
    longest = 16

    def score(self, item: Item, answer: str) -> Score:
        """The verdict is the letter, or "unparsable", which is wrong."""
        verdict = read_choice(answer, item.meta["options"])
        correct = verdict == item.meta["answer"]
        return Score(verdict, {"asked": 1.0, "right": float(correct)}, {**item.meta, "correct": correct})

    def join(self, records: Sequence[Record]) -> Sequence[Record]:
        """Questions right in every turn; the bootstrap draws them with all their turns."""
        joined = with_groups(records, self.entries, lambda meta: meta["round"], "rounds")
        return [replace(one, image=one.details["round"]) for one in joined]

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Per row, and per question over all its turns."""
        zero = np.zeros_like(totals["asked"])
        return {
            "accuracy": ratio(totals["right"], totals["asked"]),
            "circular accuracy": ratio(totals.get("rounds_right", zero), totals.get("rounds", zero)),
        }

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """The table without pictures, with a column `prediction`, as VLMEvalKit reads it."""
        rows = [{**self.by_id[one.id].raw, "prediction": one.answer} for one in records]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return {"answers.tsv": text.getvalue()} if rows else {}


def read_choice(answer: str, options: Mapping[str, str]) -> str:
    """The letter that an answer begins with ("B", "(b)", "The answer is B."), else the one option that it names."""
    match = _LETTER.match(answer)
    # "A cat" begins with an article, not with a choice
    if match and match.group(1).upper() in options and not re.match(r"\W*[Aa] \w", answer):
        return match.group(1).upper()
    named = [
        letter
        for letter, text in options.items()
        if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE)
    ]
    return named[0] if len(named) == 1 else "unparsable"


def load_mmbench(path: Path, images: Path) -> Listed[Entry]:
    """Read a table and unpack its pictures into the folder `images`, those that are not there yet.

    Raises:
        MmattnError: missing file, or no usable row.
    """

    def parse(fields: Fields) -> Entry:
        index = fields.whole("index")
        options = {letter: text for letter in LETTERS if (text := _said(fields, letter))}
        answer = fields.text("answer").strip()
        if answer not in options:
            raise UnusableError(f"answer {answer!r} is none of the options {', '.join(options)}")
        lines = [
            _said(fields, "hint"),
            fields.text("question"),
            *(f"{letter}. {text}" for letter, text in options.items()),
            ASK,
        ]
        meta = {
            "options": options,
            "answer": answer,
            "round": str(index % ROUND),
            "category": str(fields.values.get("category") or ""),
        }
        raw = {name: value for name, value in fields.values.items() if name != "image"}
        return Entry(str(index), _unpacked(fields, index, images), "\n".join(filter(None, lines)), meta, raw)

    return load(path, parse, lambda entry: f"index {entry.id}", FORM)


def _said(fields: Fields, name: str) -> str:
    text = str(fields.values.get(name) or "").strip()
    return "" if text.lower() in NOTHING else text


def _unpacked(fields: Fields, index: int, images: Path) -> str:
    held = fields.text("image").strip()
    if len(held) <= _REFERENCE and held.isdecimal():
        return f"{int(held)}.jpg"
    try:
        content = base64.b64decode(held, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableError("'image' is no base64") from error
    name = f"{index}.jpg"
    if not (images / name).exists():
        images.mkdir(parents=True, exist_ok=True)
        part = images / f".{name}.part"
        part.write_bytes(content)
        part.replace(images / name)
    return name
