"""SpotLight (arXiv 2505.12025, EACL 2026): hold attention to the instruction at a level.

With psi a row's attention to the marked tokens, where psi < target,

    E'_j = E_j + ln(target / psi)     for marked tokens j, before the softmax

in all layers and heads. Their attention then is target / (target + 1 - psi): more than before, less than the target.
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
class SpotLight(Steering):
    """Raise attention to the instruction in rows where it is low.

    Attributes:
        target: the level, 0..1; 0 is the plain model.
        on: what is emphasised: "instruction" (the user's words), "image", or "mark" (what `emphasise=...` says).
    """

    target: float = 0.3
    on: str = "instruction"

    name: ClassVar[str] = "spotlight"
    card: ClassVar[Card] = Card(
        summary="Raise attention to the instruction in rows where it is below a level.",
        source="SpotLight, arXiv 2505.12025, no code known to us",
        formula="paper, as others restate it",
        exact=True,
        branches=1,
        extra_passes="none",
        defaults_from="ours: nothing was tuned",
    )

    def __post_init__(self) -> None:
        number("SpotLight target", self.target, 0, 1)
        check_place("SpotLight", self.on)

    def edits(self) -> tuple[Edit, ...]:
        return (Level(self.on, self.target),) if self.target else ()


@dataclass(frozen=True)
class Level(Steer):
    """See the module."""

    target: float

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        marked = self.marked(site)
        share = share_of(scores.softmax(-1), marked)
        low = (share > 0) & (share < self.target)
        return scores + torch.where(low, (self.target / share).log(), 0.0) * marked
