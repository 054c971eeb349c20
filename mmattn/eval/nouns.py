"""Which words of AMBER's lists a description names, and which of them fit its picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmattn.eval.objects import singular

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@dataclass(frozen=True)
class Named:
    """What a description names.

    Attributes:
        words: listed words, in order, repeats included.
        wrong: those that fit nothing in the picture.
        covered: objects of the picture that are named.
        tempted: tempting objects that are named.
    """

    words: tuple[str, ...]
    wrong: tuple[str, ...]
    covered: tuple[str, ...]
    tempted: tuple[str, ...]


class Association:
    """AMBER's words, each with those that may stand for it.

    AMBER's script tags parts of speech, and takes words for the same if spaCy's vectors have a similarity above 0.8.
    Here every word of its lists counts, and words are the same if the lists say so: a word off the lists is never
    counted by either.

    Args:
        relation: from an object to the words that may stand for it; not the other way round.
        safe: words that are never wrong, and that name nothing either.
    """

    def __init__(self, relation: Mapping[str, Sequence[str]], safe: Sequence[str]) -> None:
        self._relation = relation
        self._safe = {word.strip() for word in safe if word.strip()}
        listed = (*relation, *(other for others in relation.values() for other in others))
        self._known = {word.lower(): word for word in listed}  # "TV" is listed in capitals

    def read(self, text: str, truth: Sequence[str], tempting: Sequence[str]) -> Named:
        """What a description names of a picture's objects, and of those that are likely but absent."""
        words = self._words(text)
        wrong = []
        covered: set[int] = set()
        tempted: set[int] = set()
        for word in words:
            if word in self._safe:
                continue
            place = self._place(word, truth)
            if place is not None:
                covered.add(place)
                continue
            wrong.append(word)
            place = self._place(word, tempting)
            if place is not None:
                tempted.add(place)
        return Named(
            tuple(words),
            tuple(wrong),
            tuple(truth[index] for index in sorted(covered)),
            tuple(tempting[index] for index in sorted(tempted)),
        )

    def _words(self, text: str) -> list[str]:
        words = (re.sub(r"['’]s$", "", word.group().lower()) for word in _WORD.finditer(text))
        forms = (word if word in self._known else singular(word) for word in words)
        return [self._known[word] for word in forms if word in self._known]

    def _place(self, word: str, objects: Sequence[str]) -> int | None:
        """Which object a word names: one alone, and one that it may stand for comes before the word itself."""
        for index, one in enumerate(objects):
            if word in self._relation.get(one, ()):
                return index
        return objects.index(word) if word in objects else None
