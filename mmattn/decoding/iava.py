"""Instruction-Aligned Visual Attention (Li et al., arXiv 2503.18556; no public code).

Image tokens that draw attention under a general instruction, but less under the question, have nothing to do with it.
A branch that sees only those tells what to say from habit; the answer moves away from it.

A labelled reconstruction. Published: the two instructions, a cut by mean and standard deviation, and the contrast of
scores. Ours, with AvisC's public code as a model (arXiv 2405.17820): attention is the mean over all layers and heads of
the prompt's last token; with mean mu and deviation sigma of a1 over the image tokens,

    R = { i : a1_i > mu + lam sigma and a2_i < a1_i },   or the `share` with the largest a1 - a2 > 0 if that is empty;
    z' from a branch in which image tokens outside R are hidden;
    z_iava = (1 + alpha) z - alpha z',    kept where p(token) >= beta * max p.

With a1 = a2 nothing is irrelevant, nothing is hidden, and z' = z: plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from mmattn.adapters import Sample
from mmattn.checks import number
from mmattn.decoding.method import Branch, Card, Contrast, Step, contrasted
from mmattn.errors import MmattnError

# Of two readings of the same attention, by how much they may differ.
ROUNDING = 1e-5


@dataclass(frozen=True)
class IAVA(Contrast):
    """Contrast with the image tokens that the question does not care for.

    Attributes:
        alpha: strength of the contrast; 0 leaves the scores as they are.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        lam: how many deviations above the mean a token's attention under the general instruction must be.
        share: part of the image tokens to take, those with the largest loss, where no token passes the cut.
        general: the general instruction.
    """

    alpha: float = 1.0
    beta: float = 0.1
    lam: float = 1.0
    share: float = 0.1
    general: str = "Describe the content of the image."

    name: ClassVar[str] = "iava"
    card: ClassVar[Card] = Card(
        summary="Contrast with the image tokens that the question does not care for.",
        source="IAVA, arXiv 2503.18556, no code",
        formula="ours, from the abstract and a review; the choice of tokens leans on AvisC's code",
        exact=False,
        branches=2,
        extra_passes="one prefill of two rows per sample",
        defaults_from="ours: the paper's are not published; lam and beta as in AvisC's code",
    )

    def __post_init__(self) -> None:
        for name in ("alpha", "lam"):
            number(f"IAVA {name}", getattr(self, name), 0)
        for name in ("beta", "share"):
            number(f"IAVA {name}", getattr(self, name), 0, 1)
        if not isinstance(self.general, str) or not self.general.strip():
            raise MmattnError("IAVA general is empty", "Write an instruction that fits every picture.")

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("irrelevant tokens", hidden=self._hidden),) if self.alpha else ()

    def probes(self) -> dict[str, Callable[[Sample], Sample]]:
        return {"general": self._general} if self.alpha else {}

    def contrast(self, step: Step) -> torch.Tensor:
        return contrasted(step.logits, self.alpha, self.beta)

    def _general(self, sample: Sample) -> Sample:
        return replace(sample, prompt=self.general)

    def _hidden(self, looks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        general, asked = (looks[name].mean((0, 1)) for name in ("general", "plain"))
        return hide_all_but(irrelevant(general, asked, self.lam, self.share))


def irrelevant(general: torch.Tensor, asked: torch.Tensor, lam: float, share: float) -> torch.Tensor:
    """Image tokens (N,) bool that lose attention, from general to asked, and had much; none where none loses any."""
    lost = general - asked
    lost = torch.where(lost > ROUNDING * general, lost, 0)
    chosen = (general > general.mean() + lam * general.std(correction=0)) & (lost > 0)
    if not chosen.any():
        most = lost.topk(max(1, round(share * len(lost)))).indices if share else lost.new_zeros(0).long()
        chosen[most] = lost[most] > 0
    return chosen


def hide_all_but(kept: torch.Tensor) -> torch.Tensor:
    """Hide (N,) bool what is not kept; where nothing is, a branch would show nothing: then nothing is hidden."""
    return ~kept if bool(kept.any()) else torch.zeros_like(kept)
