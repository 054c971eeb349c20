"""From a model's words to yes or no. The field has several rules that disagree, so each one has a name and a version.

A rule sees the gold label too, because one of the public rules depends on it; no honest one uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mmattn.errors import unknown

Verdict = Literal["yes", "no", "unparsable"]


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


register(Scorer("official", "1", "AoiDragon/POPE evaluate.py, 2025-08", official))
