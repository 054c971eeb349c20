"""Which COCO objects a text names: words to categories, for CHAIR. Knows no image and no metric."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmattn.eval.questions import inflector

TABLE = Path(__file__).parent / "data" / "synonyms.toml"

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_POSSESSIVE = re.compile(r"['’]s$", re.IGNORECASE)
_ANY_ANIMAL = frozenset({"animal", "cub"})  # no category of their own, yet "baby animal" is no baby either


@dataclass(frozen=True)
class Mention:
    """One object word in a text: text[start:end] names `category`."""

    category: str
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class _Token:
    word: str
    start: int
    end: int
    joined: bool  # nothing but blanks, or a hyphen, between the word before and this: "wine, glasses" is no phrase


class Vocabulary:
    """The synonym table, ready for look-ups."""

    _words = _WORD

    def __init__(self, table: Mapping[str, Any]) -> None:
        categories, ignored = table["categories"], table["ignored"]
        qualifiers = table["qualifiers"]
        self.version = str(table["version"])
        self.categories: tuple[str, ...] = tuple(categories)
        self._names: dict[tuple[str, ...], str | None] = {tuple(p.split()): None for p in ignored["phrases"]}
        for category, others in categories.items():
            self._names.update({tuple(phrase.split()): category for phrase in (category, *others)})
        self._qualifiers: dict[str, frozenset[str]] = {word: frozenset(of) for word, of in qualifiers.items()}
        self._known = {word for phrase in self._names for word in phrase} | set(qualifiers) | _ANY_ANIMAL
        self._longest = max(map(len, self._names))

    def mentions(self, text: str) -> list[Mention]:
        """Every object named in `text`, in order, repeats included."""
        tokens = self._tokens(text)
        found: list[Mention] = []
        i = 0
        while i < len(tokens):
            length = self._match(tokens, i)
            if length == 0 or self._only_qualifies(tokens, i):
                i += 1
                continue
            first, last = tokens[i], tokens[i + length - 1]
            category = self._names[tuple(token.word for token in tokens[i : i + length])]
            if category is not None:
                found.append(Mention(category, text[first.start : last.end], first.start, last.end))
            i += length
        if any(token.word == "toilet" for token in tokens):  # its seat is no chair, wherever it is mentioned
            found = [mention for mention in found if self._single(_POSSESSIVE.sub("", mention.word)) != "seat"]
        return found

    def singular(self, word: str) -> str:
        """The word in its listed form. A word of the table is left alone: an engine makes "bus" a "bu"."""
        if word in self._known or not word:
            return word
        single = self._single(word)
        return single if single in self._known else word

    def _single(self, word: str) -> str:
        return singular(word.lower())

    def _tokens(self, text: str) -> list[_Token]:
        tokens: list[_Token] = []
        before = 0
        for match in self._words.finditer(text):
            bare = _POSSESSIVE.sub("", match.group())
            joined = text[before : match.start()].isspace()
            before = match.start() + len(bare)
            word = bare.lower()
            parts = self._parts(word)
            phrase = tuple(self.singular(part) for part in parts)
            if len(parts) == 1 or phrase not in self._names:
                # a compound is one word unless it spells a listed phrase: "man-made" names no man
                tokens.append(_Token(self.singular(word), match.start(), match.end(), joined))
                continue
            start = match.start()
            for part, single in zip(parts, phrase, strict=True):
                tokens.append(_Token(single, start, start + len(part), joined or start > match.start()))
                start += len(part) + 1
        return tokens

    def _parts(self, word: str) -> list[str]:
        return word.split("-")

    def _match(self, tokens: Sequence[_Token], i: int) -> int:
        """How many tokens the longest listed phrase at `i` has; 0 when there is none."""
        for length in range(min(self._longest, len(tokens) - i), 0, -1):
            phrase = tokens[i : i + length]
            if all(token.joined for token in phrase[1:]) and tuple(token.word for token in phrase) in self._names:
                return length
        return 0

    def _only_qualifies(self, tokens: Sequence[_Token], i: int) -> bool:
        categories = self._qualifiers.get(tokens[i].word)
        if categories is None or not self._goes_on(tokens, i):
            return False
        if tokens[i + 1].word in _ANY_ANIMAL:
            return "bear" in categories  # the animal qualifiers, not "passenger"
        length = self._match(tokens, i + 1)
        return length > 0 and self._names[tuple(t.word for t in tokens[i + 1 : i + 1 + length])] in categories

    def _goes_on(self, tokens: Sequence[_Token], i: int) -> bool:
        return i + 1 < len(tokens) and tokens[i + 1].joined


class Original(Vocabulary):
    """The table as the first published script reads it, its slips included.

    It looks at the words between spaces and commas, and at pairs of them that stand in a list of its own: no phrase
    of three words, no parts of a hyphened or slashed word. Some entries can never match, and some words are no longer
    themselves once made singular. A qualifier stands only before the animals' own names, or "jet" and "train".
    """

    _words = re.compile(r"[^\W_]+(?:[-'’./][^\W_]+)*")

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__(table)
        rules = table["original"]
        pairs, unmatched = set(rules["pairs"]), set(rules["unmatched"])
        # an unmatched pair is still taken for one word, that names nothing
        self._names = {
            words: None if " ".join(words) in unmatched else category
            for words, category in self._names.items()
            if len(words) == 1 or " ".join(words) in pairs
        }
        self._names |= {(word,): category for word, category in rules["misspelt"].items()}
        self._known |= set(rules["misspelt"])
        self._broken = frozenset(rules["broken"])
        self._before = {word: frozenset(followers) for word, followers in rules["qualifiers"].items()}

    def singular(self, word: str) -> str:
        """As ever, but nothing for a word that its library breaks."""
        return "" if word in self._broken else super().singular(word)

    def _parts(self, word: str) -> list[str]:
        return [word]

    def _only_qualifies(self, tokens: Sequence[_Token], i: int) -> bool:
        return self._goes_on(tokens, i) and tokens[i + 1].word in self._before.get(tokens[i].word, ())


@functools.cache
def vocabulary(original: bool = False) -> Vocabulary:
    """The table that ships with the package, read as it should be, or as the original does."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return Original(table) if original else Vocabulary(table)


def word_count(text: str) -> int:
    """Length of a caption in words."""
    return len(_WORD.findall(text))


@functools.lru_cache(maxsize=50_000)
def singular(word: str) -> str:
    """The singular of a plural noun in lower case; any other word as it is, and some that only look like one."""
    if not word.isalpha():
        return word
    single = inflector().singular_noun(word)
    return single if isinstance(single, str) else word
