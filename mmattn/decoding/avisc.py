"""Attentional Vision Calibration (Woo et al., arXiv 2405.17820; public code sangminwoo/AvisC).

Image tokens that draw much attention whatever is asked are blind tokens. A branch that keeps only those tells what to
say from habit; the answer moves away from it. At the prompt's last token, heads averaged:

    layers: the fewest whose shares of attention on the picture, largest first, reach gamma of all layers' shares
    a = attention on image tokens, mean over these layers;    tokens with a < mean + lam deviation are zeroed
    z_avisc = (1 + alpha) z - alpha z',    kept where p(token) >= beta * max p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.checks import number
from mmattn.decoding.method import Branch, Card, Contrast, Step, contrasted


@dataclass(frozen=True)
class AvisC(Contrast):
    """Contrast with the image tokens that draw most attention.

    Attributes:
        alpha: strength of the contrast; 0 leaves the scores as they are.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        gamma: part of the attention on the picture that the chosen layers must hold.
        lam: how many deviations above the mean a token's attention must be to stay.
    """

    alpha: float = 3.0
    beta: float = 0.1
    gamma: float = 0.5
    lam: float = 1.0

    name: ClassVar[str] = "avisc"
    card: ClassVar[Card] = Card(
        summary="Contrast with the few image tokens that draw most attention.",
        source="AvisC, arXiv 2405.17820, code sangminwoo/AvisC",
        exact=True,
        branches=2,
        extra_passes="one prefill of one row per sample",
        defaults_from="the code's POPE script; its argparse has alpha=1, lam=0.99",
        presets={"the code's argparse": "avisc(alpha=1, lam=0.99)"},
    )

    def __post_init__(self) -> None:
        for name in ("alpha", "lam"):
            number(f"AvisC {name}", getattr(self, name), 0)
        for name in ("beta", "gamma"):
            number(f"AvisC {name}", getattr(self, name), 0, 1)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("blind tokens", hidden=self._ordinary, zeroed=True),) if self.alpha else ()

    def contrast(self, step: Step) -> torch.Tensor:
        return contrasted(step.logits, self.alpha, self.beta)

    def _ordinary(self, looks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        attention = looks["plain"].mean(1)
        shares, order = attention.sum(-1).sort(descending=True)
        reached = (shares / shares.sum()).cumsum(0) >= self.gamma
        count = int((~reached).sum()) + 1
        drawn = attention[order[:count]].mean(0)
        return drawn < drawn.mean() + self.lam * drawn.std(correction=0)
