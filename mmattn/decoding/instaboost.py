"""InstABoost (Guardieiro et al., arXiv 2506.13734; public code BrachioLab/InstABoost): boost the instruction.

    A'_j = M A_j / (sum over all keys of the multiplied row)    for tokens j of the instruction

in all layers and heads. The same as adding ln M to the scores of those keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number
from mmattn.decoding.method import Card
from mmattn.decoding.steering import Steer, Steering, check_place


@dataclass(frozen=True)
class InstABoost(Steering):
    """Multiply every head's attention to the instruction.

    Attributes:
        strength: the factor M; 1 is the plain model.
        on: what is emphasised: "instruction" (the user's words), "image", or "mark" (what `emphasise=...` says).
    """

    strength: float = 2.0
    on: str = "instruction"

    name: ClassVar[str] = "instaboost"
    card: ClassVar[Card] = Card(
        summary="Multiply the attention to the instruction and renormalise.",
        source="InstABoost, arXiv 2506.13734, code BrachioLab/InstABoost",
        exact=True,
        branches=1,
        extra_passes="none",
        defaults_from="ours: the paper searches strengths 1, 3, ..., 19 for each task",
    )

    def __post_init__(self) -> None:
        number("InstABoost strength", self.strength, 1e-6)
        check_place("InstABoost", self.on)

    def edits(self) -> tuple[Edit, ...]:
        return () if self.strength == 1 else (Raise(self.on, math.log(self.strength)),)


@dataclass(frozen=True)
class Raise(Steer):
    """Add `amount` to the scores of the marked tokens."""

    amount: float

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        return scores + self.amount * self.marked(site)
