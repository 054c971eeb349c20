"""What one visitor's page remembers: plain values that no other visitor's page holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from mmattn.grounding import Attention

Where = Literal["answer", "prompt"]

ONE_HEAD = "one head"
LAYER_MEAN = "mean of the layer's heads"
LAYER_MAX = "strongest of the layer's heads"
ALL_MEAN = "mean of all layers and heads"
AGGREGATIONS = (ONE_HEAD, LAYER_MEAN, LAYER_MAX, ALL_MEAN)


@dataclass(frozen=True)
class Picture:
    """A picture that was read and checked: upright RGB, and what its file was called."""

    image: Image.Image
    name: str


@dataclass(frozen=True)
class Word:
    """A word as it is shown, with the space after it, and the captured rows that belong to it."""

    text: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How an answer is made."""

    model: str
    method: str = "greedy"
    max_new_tokens: int = 64
    seed: int = 0
    sample: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `VLM.generate`."""
        return {
            "method": self.method,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "do_sample": self.sample,
        }


@dataclass(frozen=True)
class Asked:
    """One question with its answer and the rows that were read on the way: all that sliders need.

    Attributes:
        finish: "stop", "length", or "stopped" by the user.
        answer, prompt_words: the words to click.
        answer_rows: one row per generated token: the one that decided it. None where nothing could be read.
        prompt_rows: rows of the prompt's tokens; None in families that have none.
    """

    settings: Settings
    picture: Picture
    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish: str
    seconds: float
    answer: tuple[Word, ...]
    prompt_words: tuple[Word, ...]
    answer_rows: Attention | None
    prompt_rows: Attention | None

    def words(self, where: Where) -> tuple[Word, ...]:
        return self.answer if where == "answer" else self.prompt_words

    def rows(self, where: Where) -> Attention | None:
        return self.answer_rows if where == "answer" else self.prompt_rows


@dataclass(frozen=True)
class View:
    """Which word's map is drawn, and how."""

    where: Where = "answer"
    word: int = 0
    layer: int = 0
    head: int = 0
    how: str = ALL_MEAN
    opacity: float = 0.75
    smooth: bool = False

    def chosen(self) -> dict[str, int]:
        """Arguments `layers` and `heads` of a heat map; those that are averaged are left out."""
        chosen = {}
        if self.how != ALL_MEAN:
            chosen["layers"] = self.layer
        if self.how == ONE_HEAD:
            chosen["heads"] = self.head
        return chosen
