"""Multi-Modal Mutual-Information Decoding (Favero et al., CVPR 2024; no public code).

The longer an answer, the more it forgets the picture; so what the picture adds weighs more with every token:

    out = c + 1[max c < ln alpha] (1 - g) / g (c - u),      g = exp(-lambda t),    t = 1, 2, ...

c and u are log-probabilities with and without the picture; a model that is sure is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.checks import number
from mmattn.decoding.method import Branch, Card, Contrast, Step, plausible, without_pictures


@dataclass(frozen=True)
class M3ID(Contrast):
    """Favour tokens that the picture makes more probable, more so late in the answer.

    Attributes:
        rate: lambda, how fast the weight grows with each token; 0 leaves the scores as they are.
        alpha: tokens are left alone where the largest probability is at least this; 1 corrects always.
        beta: plausibility cut, which the paper does not have; 0 switches it off.
    """

    rate: float = 0.02
    alpha: float = 0.3
    beta: float = 0.0

    name: ClassVar[str] = "m3id"
    card: ClassVar[Card] = Card(
        summary="Favour what the picture makes more probable, more so late in the answer.",
        source="M3ID, CVPR 2024, no code",
        formula="paper, as others restate it",
        exact=True,
        branches=2,
        extra_passes="none",
        defaults_from="a later toolkit (mitigv); the paper's own are not known to us",
    )

    def __post_init__(self) -> None:
        number("M3ID rate", self.rate, 0, 1)
        number("M3ID alpha", self.alpha, 0, 1)
        number("M3ID beta", self.beta, 0, 1)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("no picture", sample=without_pictures),) if self.rate and self.alpha else ()

    def contrast(self, step: Step) -> torch.Tensor:
        seen, blind = step.logits.log_softmax(-1).unbind(1)
        weight = torch.expm1(self.rate * (step.number + 1).to(seen.dtype))  # (1 - g) / g
        unsure = seen.amax(-1, keepdim=True) < math.log(self.alpha)
        return (seen + unsure * weight * (seen - blind)).masked_fill(~plausible(seen, self.beta), -torch.inf)
