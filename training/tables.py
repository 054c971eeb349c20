"""Token tables on the device, so that no text is built per sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmattn.scenes.catalog import CATEGORIES
from training import words
from training.processor import Style

__all__ = ["EMPTY", "IGNORE", "Lines", "Tables", "prefix_ids"]

EMPTY, IGNORE = -1, -100  # an unused cell; a label outside answers
_NAMES = range(len(CATEGORIES))


@dataclass(frozen=True)
class Lines:
    """Token rows and, for each token, whether it is part of an answer; both (..., length)."""

    ids: Tensor
    answer: Tensor

    @property
    def length(self) -> int:
        """Cells in a row."""
        return self.ids.shape[-1]

    def labels(self) -> Tensor:
        """The tokens to learn, IGNORE elsewhere."""
        return torch.where(self.answer & (self.ids >= 0), self.ids, IGNORE)


def prefix_ids(style: Style, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens every prompt begins with, up to the one after the image token (which is not yet repeated); none if
    the picture has no place in the text.
    """
    if not style.in_text:
        return []
    ids: list[int] = tokenizer(style.prompt(""))["input_ids"]
    return ids[: ids.index(tokenizer.convert_tokens_to_ids(style.image)) + 2]


class Tables:
    """All token tables.

    ``short``, ``long`` (templates, categories, 2): yes/no questions answered "No" and "Yes"; ``where`` (templates,
    categories, 9); ``count`` (templates, categories, 4); ``ask`` (2, prompts): caption prompts, plain and placed;
    ``noun`` (categories, 3), ``place`` (9,), ``separator`` (3,), ``opening`` and ``closing``: caption pieces.
    """

    def __init__(self, style: Style, tokenizer: PreTrainedTokenizerFast, device: str) -> None:
        self.style, self.tokenizer, self.device = style, tokenizer, device
        self.prefix = prefix_ids(style, tokenizer)
        yes_no = ["No", "Yes"]
        self.short = self._questions(words.SHORT_YES_NO, yes_no)
        self.long = self._questions(words.LONG_YES_NO, yes_no)
        self.where = self._questions(words.WHERE, words.place_answers())
        self.count = self._questions(words.COUNT, words.count_answers())
        asks = [[self._prompt(text) for text in texts] for texts in (words.CAPTION_BRIEF, words.CAPTION_PLACED)]
        self.ask = self._pad([row for rows in asks for row in rows]).reshape(2, len(words.CAPTION_BRIEF), -1)
        opening, separators, end = words.caption_items()
        nouns = [self._plain(words.category_words(c, n)) for c in _NAMES for n in (1, 2, 3)]
        self.noun = self._pad(nouns).reshape(len(CATEGORIES), 3, -1)
        self.place = self._pad([self._plain(text) for text in words.place_words()])
        self.separator = self._pad([self._plain(text) for text in separators])
        self.opening = self._pad([self._plain(style.answer(opening))])[0]
        self.closing = self._pad([[*self._plain(end), tokenizer.eos_token_id]])[0]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _prompt(self, question: str) -> list[int]:
        """The tokens after the shared prefix."""
        ids: list[int] = self.tokenizer(self.style.prompt(question))["input_ids"]
        head = len(self.prefix)
        assert ids[:head] == self.prefix, "a question changed the tokens before it"
        return ids[head:]

    def _pad(self, rows: Sequence[list[int]]) -> Tensor:
        width = max(max(len(row) for row in rows), 1)
        return torch.tensor([row + [EMPTY] * (width - len(row)) for row in rows], device=self.device)

    def _questions(self, templates: Sequence[str], answers: Sequence[str]) -> Lines:
        rows, flags = [], []
        ends = [[*self._plain(self.style.answer(text)), self.tokenizer.eos_token_id] for text in answers]
        for template in templates:
            for category in _NAMES:
                head = self._prompt(words.fill(template, category))
                rows += [head + end for end in ends]
                flags += [[0] * len(head) + [1] * len(end) for end in ends]
        shape = (len(templates), len(CATEGORIES), len(answers), -1)
        return Lines(self._pad(rows).reshape(shape), self._pad(flags).reshape(shape) == 1)
