"""Which words of AMBER's lists a description names, and which of them fit its picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmattn.eval.objects import singular

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


class Association:
    """AMBER's words, each with those that mean the same.

    AMBER's script tags parts of speech, and takes words for the same if spaCy's vectors are close. Here every word
    of its lists counts, and words are the same if the lists say so: a word off the lists is never counted by either.

    Args:
        relation: from word to words of the same meaning.
        safe: words that are never wrong.
    """

    def __init__(self, relation: Mapping[str, Sequence[str]], safe: Sequence[str]) -> None:
        self._relation = relation
        self._safe = {word.strip() for word in safe if word.strip()}
        self._known = {*relation, *(other for others in relation.values() for other in others)}

    def named(self, text: str) -> list[str]:
        """Listed words of a text, in order, repeats included, in the form that is listed."""
        words = (word.group().lower() for word in _WORD.finditer(text))
        forms = (word if word in self._known else singular(word) for word in words)
        return [word for word in forms if word in self._known]

    def fits(self, word: str, objects: Sequence[str]) -> bool:
        """Whether a word names one of the objects, or is never wrong."""
        return word in self._safe or any(word in self._same(one) for one in objects)

    def covered(self, named: Sequence[str], objects: Sequence[str]) -> list[str]:
        """The objects that are named."""
        return [one for one in objects if any(word in self._same(one) for word in named)]

    def _same(self, one: str) -> tuple[str, ...]:
        return (one, *self._relation.get(one, ()))
