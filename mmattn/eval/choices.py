"""Answers chosen by the scores of their first token, where a question has a few possible answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmattn.errors import MmattnError

YES_NO = {"Yes": ("Yes", "yes"), "No": ("No", "no")}


@dataclass(frozen=True)
class Chosen:
    """The answer that leads; empty where a method rules out the beginnings of all.

    `scores` are log sums of exp(score) by answer, to four digits; None for an answer that is ruled out.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    scores: Mapping[str, float | None]


class ByScores:
    """A model that answers with the choice whose beginnings are most likely, under the method's joined scores.

    Args:
        model: from `mmattn.load`.
        choices: possible answers, each with the words it may begin with; their probabilities are added.

    Raises:
        MmattnError: two choices begin with the same token, so that it decides nothing.
    """

    def __init__(self, model: Any, choices: Mapping[str, Sequence[str]]) -> None:
        self.name = model.name
        self._model = model
        self._tokens = {
            answer: sorted({model.first_token(word) for word in words}) for answer, words in choices.items()
        }
        ids = [token for tokens in self._tokens.values() for token in tokens]
        if len(set(ids)) < len(ids):
            raise MmattnError(
                f"In this model's tokens {' and '.join(choices)} begin alike", "Read its answers as text instead."
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def describe(self) -> dict[str, Any]:
        """The model, and how its answers are taken."""
        return {**self._model.describe(), "answers": {"by": "scores of the first token", "tokens": self._tokens}}

    def generate(self, images: Sequence[Any], prompts: Sequence[str], **given: Any) -> list[Chosen]:
        """As the model's own, one token long."""
        ids = [token for tokens in self._tokens.values() for token in tokens]
        answers = self._model.generate(images, prompts, **{**given, "max_new_tokens": 1, "scores": ids})
        return [self._chosen(one) for one in answers]

    def _chosen(self, said: Any) -> Chosen:
        """The choice with the largest sum of exp(score), the first of equals."""
        sums = {
            answer: float(np.logaddexp.reduce([said.scores[token] for token in tokens]))
            for answer, tokens in self._tokens.items()
        }
        best = max(sums, key=sums.__getitem__)
        shown = {answer: round(value, 4) if np.isfinite(value) else None for answer, value in sums.items()}
        return Chosen(best if np.isfinite(sums[best]) else "", tuple(said.token_ids), said.finish_reason, shown)
