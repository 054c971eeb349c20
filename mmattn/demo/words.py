"""From tokens to the words that people click."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import mmattn
from mmattn.adapters import Sample
from mmattn.demo.state import Picture, Word
from mmattn.grounding import Attention

Span = tuple[int, int]
_WORD = re.compile(r"\S+\s*")
_CORE = re.compile(r"\w(?:\S*\w)?")


def words_of(text: str, spans: Sequence[Span]) -> tuple[Word, ...]:
    """The words of `text`, each with the numbers of the `spans` of characters that share some with it.

    A comma or full stop belongs to no word, unless it stands alone.
    """
    found = []
    for match in _WORD.finditer(text):
        core = _CORE.search(match.group()) or _WORD.search(match.group())
        assert core is not None
        start = match.start() + core.start()
        end = start + len(core.group().rstrip())
        rows = tuple(row for row, (first, last) in enumerate(spans) if first < end and last > start)
        found.append(Word(match.group(), rows))
    return tuple(found)


def answer_words(tokenizer: Any, ids: Sequence[int]) -> tuple[Word, ...]:
    """The words of an answer; row number n belongs to its token number n."""
    ends = [len(tokenizer.decode(ids[: end + 1], skip_special_tokens=True)) for end in range(len(ids))]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return words_of(text, list(zip([0, *ends[:-1]], ends, strict=True)))


def prompt_words(model: mmattn.VLM, picture: Picture, prompt: str, read: Attention | None) -> tuple[Word, ...]:
    """The words of the prompt, with the rows of `read` (its tokens) that hold them."""
    prepared = model.adapter.prepare([Sample((picture.image,), prompt)])[0]
    first, last = prepared.said
    said = prepared.text[first:last]
    if read is None:
        return words_of(said, [])
    spans = [prepared.offsets[position] for position in read.positions]
    return words_of(said, [(start - first, end - first) for start, end in spans])


def differing(answers: Sequence[str]) -> list[list[Span]]:
    """For each answer the character ranges of words that the first answer does not have there.

    The first one's are those that none of the others has. Punctuation and capitals do not count.
    """
    words = [list(_WORD.finditer(text)) for text in answers]
    plain = [[_plain(match.group()) for match in row] for row in words]
    marks: list[set[int]] = [set() for _ in answers]
    if len(answers) > 1:
        marks[0].update(range(len(plain[0])))
    for number in range(1, len(answers)):
        lost: set[int] = set()
        matcher = difflib.SequenceMatcher(None, plain[0], plain[number], autojunk=False)
        for kind, a, b, c, d in matcher.get_opcodes():
            if kind != "equal":
                lost.update(range(a, b))
                marks[number].update(range(c, d))
        marks[0] &= lost
    return [_ranges(row, marked) for row, marked in zip(words, marks, strict=True)]


def _plain(word: str) -> str:
    core = _CORE.search(word)
    return (core.group() if core else word.strip()).casefold()


def _ranges(words: Sequence[re.Match[str]], marked: set[int]) -> list[Span]:
    """The characters of the marked words, neighbours together."""
    ranges: list[Span] = []
    for number in sorted(marked):
        start, end = words[number].start(), words[number].start() + len(words[number].group().rstrip())
        if number - 1 in marked and ranges:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return ranges
