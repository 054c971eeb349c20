"""More attention to the picture: multiply and renormalise.

    A'_j = M A_j / (sum over all keys of the multiplied row)   for image tokens j, in rows of text after the picture.

That is the rule of InstABoost (arXiv 2506.13734, code BrachioLab/InstABoost), which multiplies the attention to an
instruction; here it is applied to the picture. The same as adding ln M to the scores of those keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number
from mmattn.decoding.method import Card, Method


@dataclass(frozen=True)
class Boost(Method):
    """Multiply every head's attention to the picture.

    Attributes:
        strength: the factor M; 1 leaves the attention as it is, below 1 the picture counts less.
    """

    strength: float = 2.0

    name: ClassVar[str] = "boost"
    card: ClassVar[Card] = Card(
        summary="Multiply the attention to the picture and renormalise.",
        source="rule of InstABoost, arXiv 2506.13734, applied to image tokens",
        exact=False,
        branches=1,
        extra_passes="none",
        defaults_from="ours: nothing is published for pictures, and nothing was tuned",
    )

    def __post_init__(self) -> None:
        number("boost strength", self.strength, 1e-6)

    def edits(self) -> tuple[Edit, ...]:
        return () if self.strength == 1 else (Bias(math.log(self.strength)),)


@dataclass(frozen=True)
class Bias(Edit):
    """Add `amount` to the scores of image tokens."""

    amount: float

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        return scores + self.amount * site.image
