"""Signals of whole words: where each word of an answer stands, which tokens spell it, and what they say together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


@dataclass(frozen=True)
class Word:
    """One word of an answer.

    Attributes:
        text: text of the answer from character `start` to `end`.
        tokens: numbers of the generated tokens that spell it.
        image: what part of its attention lies on the picture, mean over layers, heads and its tokens.
        place: (x, y) in pixels of the original: the cell of the picture that it looks at most.
        lookback: mean lookback ratio; None in encoder-decoder models.
        probability: of its tokens, multiplied: how sure the model was.
        divergence: how much its heads move when the picture is taken away; None where that was not asked for.
        risk: the detector's probability that it is hallucinated; None without a detector.
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]
    image: float
    place: tuple[float, float]
    lookback: float | None
    probability: float
    divergence: float | None = None
    risk: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "tokens": list(self.tokens), "place": list(self.place)}


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character ranges of the words of `text`; marks between words are none."""
    return [match.span() for match in _WORD.finditer(text)]


def spelling(ranges: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, ...]:
    """Tokens, of character `ranges`, that spell the characters of `span`."""
    return tuple(index for index, (low, high) in enumerate(ranges) if low < span[1] and high > span[0])
