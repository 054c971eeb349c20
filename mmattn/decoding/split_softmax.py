"""Split-softmax (Li et al., COLM 2024, "persona drift"; no public code of the method): share out attention anew.

With pi a row's attention to the marked tokens,

    A'_j = A_j pi^k / pi              for marked tokens j
    A'_j = A_j (1 - pi^k) / (1 - pi)  for all others

in all layers and heads; rows go on summing to 1. Restated from memory: the repository holds only the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number
from mmattn.decoding.method import Card
from mmattn.decoding.steering import Steer, Steering, check_place, share_of


@dataclass(frozen=True)
class SplitSoftmax(Steering):
    """Raise the instruction's part of every row to a power.

    Attributes:
        power: k, 0..1; 1 is the plain model, smaller is stronger.
        on: what is emphasised: "instruction" (the user's words), "image", or "mark" (what `emphasise=...` says).
    """

    power: float = 0.8
    on: str = "instruction"

    name: ClassVar[str] = "split-softmax"
    card: ClassVar[Card] = Card(
        summary="Raise the instruction's part of every row of attention to a power below 1.",
        source="split-softmax, COLM 2024, no code of the method",
        formula="ours, as remembered from the paper",
        exact=False,
        branches=1,
        extra_passes="none",
        defaults_from="ours: nothing was tuned",
    )

    def __post_init__(self) -> None:
        number("split-softmax power", self.power, 0, 1)
        check_place("split-softmax", self.on)

    def edits(self) -> tuple[Edit, ...]:
        return () if self.power == 1 else (Split(self.on, self.power),)


@dataclass(frozen=True)
class Split(Steer):
    """See the module."""

    power: float

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        marked = self.marked(site)
        share = share_of(weights, marked)
        raised = share**self.power
        new = torch.where(marked, weights * (raised / share), weights * ((1 - raised) / (1 - share)))
        return torch.where((share > 0) & (share < 1), new, weights)
