"""What a method is: a frozen dataclass with a card, edits of attention, extra branches, and a rule that joins their
logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mmattn.attention import Edit


@dataclass(frozen=True)
class Card:
    """What a user should know of a method before choosing it.

    Attributes:
        summary: one line.
        source: paper and, where there is one, public code.
        exact: True if the formula is published; False for a labelled reconstruction.
        branches: rows per sample in each decoder call, the plain one included.
        extra_passes: model passes beyond those of plain decoding, in words.
        defaults_from: where the default constants come from.
    """

    summary: str
    source: str
    exact: bool
    branches: int
    extra_passes: str
    defaults_from: str


@dataclass(frozen=True)
class Branch:
    """Another input for the same sample, decoded beside the plain one.

    Attributes:
        name: for messages.
        pixels: replaces the normalised pixel values of each picture; gets a generator seeded per sample.
    """

    name: str
    pixels: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None


@dataclass(frozen=True)
class Method:
    """Plain decoding, and the base of every method: no extra branch, the logits as they are.

    A method changes what the next token is chosen from; how it is chosen (greedy, temperature, top-p, top-k) is the
    caller's business and comes after.
    """

    name: ClassVar[str] = "greedy"
    card: ClassVar[Card] = Card(
        summary="Plain decoding: the model's own next-token scores.",
        source="baseline",
        exact=True,
        branches=1,
        extra_passes="none",
        defaults_from="no constants",
    )

    def branches(self) -> tuple[Branch, ...]:
        """Branches beyond the plain one."""
        return ()

    def edits(self) -> tuple[Edit, ...]:
        """Changes of attention, in order; none at neutral strength, so that the plain model stays what it is."""
        return ()

    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Join the branches' scores (B, K, V), the plain branch first, into (B, V); -inf forbids a token."""
        return logits[:, 0]

    def settings(self) -> dict[str, Any]:
        """Name and hyper-parameters, as written into every result file."""
        return {"name": self.name, **dataclasses.asdict(self)}


def plausible(logits: torch.Tensor, beta: float) -> torch.Tensor:
    """Tokens whose probability under `logits` (B, V) is at least `beta` times the largest: (B, V) bool.

    The adaptive plausibility constraint of contrastive decoding (Li et al., ACL 2023).
    """
    floor = logits.amax(-1, keepdim=True)
    if beta > 0:
        return logits >= floor + torch.log(torch.tensor(beta, device=logits.device))
    return torch.ones_like(logits, dtype=torch.bool)
