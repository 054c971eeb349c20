"""From a model's words to yes or no. The field has several rules that disagree, so each one has a name and a version.

A rule sees the gold label too, because one of the public rules depends on it; no honest one uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mmattn.errors import unknown

Verdict = Literal["yes", "no", "unparsable"]

LOGITS = "logits"
"""For answers that were chosen by their first token's scores (`mmattn.eval.ByScores`), not read from a text."""

_YES_OR_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Scorer:
    """A named rule; raise `version` whenever a verdict can change, so that old results stay readable."""

    name: str
    version: str
    source: str
    parse: Callable[[str, str], Verdict]


def official(answer: str, label: str) -> Verdict:  # noqa: ARG001 - the signature of every rule
    """POPE's own rule: "No", "no" or "not" among the words of the first sentence is no; everything else is yes.

    So "maybe", an empty answer, "NO" and "There isn't" all count as yes. Only spaces separate words here: a word
    glued to any mark other than a comma is another word.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def opera(answer: str, label: str) -> Verdict:  # noqa: ARG001
    """OPERA's rule, also in PAI and SID: all sentences, and "NO" and words that end in "n't" are a no, too."""
    words = answer.replace(".", "").replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no", "NO") or word.endswith("n't") for word in words) else "yes"


def vcd(answer: str, label: str) -> Verdict:
    """VCD's rule: whether the answer contains the letters of the gold label, "no" in "snow" and "not" included.

    So one answer can be a yes to one question and a no to another, and an empty one is always the wrong of the two.
    """
    other: Verdict = "no" if label == "yes" else "yes"
    return _either(label) if label in answer.lower() else other


def exact(answer: str, label: str) -> Verdict:  # noqa: ARG001
    """The rule of lmms-eval: the whole answer is the word; "Yes." and "Yes, there is" are neither."""
    return _either(answer.lower().strip())


def first_word(answer: str, label: str) -> Verdict:  # noqa: ARG001
    """MitigV's rule: the first word that is yes or no, wherever it stands."""
    found = _YES_OR_NO.search(answer)
    return _either(found.group().lower()) if found else "unparsable"


def _either(word: str) -> Verdict:
    return "yes" if word == "yes" else "no" if word == "no" else "unparsable"


_SCORERS: dict[str, Scorer] = {}


def register(scorer: Scorer) -> Scorer:
    """Add a scorer under its name; a name can be taken once."""
    if scorer.name in _SCORERS:
        raise ValueError(f"scorer {scorer.name!r} is registered already")
    _SCORERS[scorer.name] = scorer
    return scorer


def scorer(name: str = "official") -> Scorer:
    """The scorer of that name; MmattnError with near matches for an unknown one."""
    if name not in _SCORERS:
        raise unknown("scorer", name, _SCORERS)
    return _SCORERS[name]


def scorers() -> tuple[str, ...]:
    """Names of all scorers."""
    return tuple(sorted(_SCORERS))


def rules() -> tuple[Scorer, ...]:
    """All scorers that read a text."""
    return tuple(one for name, one in sorted(_SCORERS.items()) if name != LOGITS)


register(Scorer("official", "1", "AoiDragon/POPE evaluate.py, 2025-08", official))
register(Scorer("opera", "1", "shikiw/OPERA and huofushuo/SID pope_eval.py, LALBJ/PAI pope_ans.py", opera))
register(Scorer("vcd", "1", "DAMO-NLP-SG/VCD eval_pope.py, 2024-10", vcd))
register(Scorer("lmms-eval", "1", "lmms-eval tasks/pope/utils.py", exact))
register(Scorer("mitigv", "1", "mitigv 0.1.7 evaluation/discriminative.py", first_word))
register(Scorer(LOGITS, "1", "higher score of the answer's first token, no text read", exact))
