"""Paying More Attention to Image (Liu et al., ECCV 2024; public code LALBJ/PAI).

The row that decides the next token looks harder at the picture, and what the model would say without one is taken off:

    E'_j = E_j + alpha |E_j|                for image tokens j, in the last row of a call, before the softmax
    out  = gamma (s - u) + u,               kept where s >= max s + ln beta

s and u are log-probabilities with the picture (edited) and without it (not edited).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number, whole
from mmattn.decoding.method import Branch, Card, Contrast, Step, plausible, without_pictures


@dataclass(frozen=True)
class PAI(Contrast):
    """Amplify attention to the picture, and contrast with the words alone.

    Attributes:
        alpha: how much larger scores on image tokens become; 0 leaves them.
        gamma: weight of the contrast; 1 switches the branch without picture off.
        beta: plausibility cut, relative to the most probable token.
        start, end: layers start..end - 1 are edited.
    """

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    start: int = 2
    end: int = 32

    name: ClassVar[str] = "pai"
    card: ClassVar[Card] = Card(
        summary="Amplify attention scores on the picture; contrast with the answer without picture.",
        source="PAI, ECCV 2024, code LALBJ/PAI",
        exact=True,
        branches=2,
        extra_passes="none; one row per sample with gamma=1",
        defaults_from="the README of the code; its argparse has gamma=2, the paper is said to have alpha=0.5",
        presets={"LLaVA in the paper, as is said": "pai(alpha=0.5)", "the code's argparse": "pai(gamma=2)"},
    )

    def __post_init__(self) -> None:
        number("PAI alpha", self.alpha, 0)
        number("PAI gamma", self.gamma, 1)
        number("PAI beta", self.beta, 0, 1)
        whole("PAI start", self.start, 0)
        whole("PAI end", self.end, 0)

    def edits(self) -> tuple[Edit, ...]:
        return (Amplify(self.alpha, self.start, self.end),) if self.alpha else ()

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("no picture", sample=without_pictures),) if self.gamma != 1 else ()

    def contrast(self, step: Step) -> torch.Tensor:
        return refined(step.logits, self.gamma, self.beta)


def refined(logits: torch.Tensor, gamma: float, beta: float) -> torch.Tensor:
    """PAI's contrast (B, V) from the scores (B, 2, V) with and without the picture."""
    seen, blind = logits.log_softmax(-1).unbind(1)
    return (gamma * (seen - blind) + blind).masked_fill(~plausible(seen, beta), -torch.inf)


@dataclass(frozen=True)
class Amplify(Edit):
    """Add `alpha` times the size of the score to the scores of image tokens, in the last row."""

    alpha: float
    start: int
    end: int

    branches: ClassVar[tuple[str, ...] | None] = ("plain",)
    last_row: ClassVar[bool] = True

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        return self.start <= layer < self.end

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        hidden = torch.isneginf(scores)
        return torch.where(site.image & ~hidden, scores + self.alpha * scores.abs(), scores)
