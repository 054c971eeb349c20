"""What a grounding method is: a frozen dataclass that says what to ask, whose rows to read, and how to make a map."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmattn.adapters import ImageLayout, View
from mmattn.checks import number, whole
from mmattn.errors import MmattnError, unknown
from mmattn.grounding.attention import Attention
from mmattn.grounding.reader import Job, Reader
from mmattn.grounding.tokens import KEY

Source = Literal["query", "generated", "last"]
Cells = NDArray[np.float32]

PROMPTS: dict[str, str] = {
    "query": 'What is the bounding box of "{query}" in the image?',
    "generated": (
        'On this screen I want to do this: "{query}". Which element do I need? Answer with nothing but a JSON object '
        f"that has the two keys action_type and {KEY}. For an icon without text, give up to three keywords as {KEY}."
    ),
    "last": "Where is {query} in the image?",
}


@dataclass(frozen=True, kw_only=True)
class Locator:
    """The base of every grounding method.

    Attributes:
        tokens: whose rows are read: "query" (its words in the prompt), "generated" (the value of
            element_content_or_description in a JSON answer; the query's words where there is none), or "last" (the
            prompt's last token, which decides the first word of the answer).
        prompt: what the model is asked, with {query} in it; by default a question that suits `tokens`.
        threshold: cells of at least this part of the strongest one make the regions.
        max_new_tokens: longest answer, for tokens="generated".
    """

    tokens: Source = "query"
    prompt: str = ""
    threshold: float = 0.5
    max_new_tokens: int = 64

    name: ClassVar[str]
    summary: ClassVar[str]

    def __post_init__(self) -> None:
        if self.tokens not in PROMPTS:
            raise unknown("tokens", str(self.tokens), PROMPTS)
        if not isinstance(self.prompt, str) or (self.prompt and self.prompt.count("{query}") != 1):
            raise MmattnError(
                f"The prompt {self.prompt!r} does not say where the query belongs", 'Put "{query}" into it, once.'
            )
        whole("max_new_tokens", self.max_new_tokens, 1)
        if number("threshold", self.threshold, 0, 1) == 0:
            raise MmattnError("threshold 0 would make one box of everything", "Use a number above 0, such as 0.5.")

    def asked(self, query: str) -> tuple[str, int]:
        """The prompt for `query`, and the character at which the query begins in it."""
        template = self.prompt or PROMPTS[self.tokens]
        return template.replace("{query}", query), template.index("{query}")

    def bound(self, depth: int, heads: int, known: tuple[tuple[int, int], ...]) -> Locator:  # noqa: ARG002
        """The method for a model of `depth` layers of `heads` heads, of which those in `known` ground best.

        Raises:
            MmattnError: it names layers or heads that the model does not have.
        """
        return self

    def layers(self) -> tuple[int, ...] | None:
        """Decoder layers that have to be read; None for all."""
        return None

    def maps(self, reader: Reader, jobs: Sequence[Job]) -> Iterator[Cells]:
        """One grid (rows, columns) for each job, of the view that `detail` chooses."""
        for read in reader.rows(jobs, self.layers()):
            yield self.cells(read)

    def cells(self, read: Attention) -> Cells:
        """The grid of one query from its rows; the mean of all rows, heads and layers unless a method says more."""
        return grid(read, read.weights.mean(dim=(0, 1, 2)))

    def settings(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON values."""
        return {"name": self.name, **dataclasses.asdict(self)}

    @property
    def label(self) -> str:
        """The name, with the hyper-parameters that are not at their default."""
        fields = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        changed = [f"{name}={value!r}" for name, value, default in fields if value != default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def detail(shown: ImageLayout) -> View:
    """The view whose cells are looked at: the stitched tiles where there are any, else the whole picture.

    A very thin picture may leave no tile rows.
    """
    return next((view for view in reversed(shown.views) if view.rows and view.columns), shown.views[0])


def at_cells(read: Attention, weights: torch.Tensor) -> torch.Tensor:
    """`weights` (..., image tokens) at the tokens that count: those of the detail view; all of a mixed picture."""
    shown = read.layout.images[0]
    if shown.mixed:
        return weights
    first = shown.tokens.start
    places = torch.tensor([token - first for token in detail(shown).tokens], device=weights.device)
    return weights[..., places]


def grid(read: Attention, weights: torch.Tensor) -> Cells:
    """`weights` (image tokens,) as the detail view's grid (rows, columns); a mixed picture's through its shares."""
    view, share = detail(read.layout.images[0]), read.shares[0]
    cells = at_cells(read, weights) if share is None else weights @ share.to(weights.device)
    values: Cells = cells.reshape(view.rows, view.columns).float().cpu().numpy()
    return values
