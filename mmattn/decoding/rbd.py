"""Re-Balancing Contrastive Decoding (Liang et al., PRCV 2024, arXiv 2409.06485; no public code).

Two branches: one with a noised picture, which leans on the words, is taken off; one that sees only the image tokens
that matter most is added.

A labelled reconstruction. Published: the two branches and what they are for. Ours: the formula,

    z_rbd = z + alpha_v (z_vis - z) + alpha_t (z - z_txt),   kept where p(token) >= beta * max p,

with z_txt under the noise of VCD and z_vis under the `share` of image tokens with the most attention from the prompt's
last token, mean over layers and heads. alpha_v = 0 is VCD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.checks import number, whole
from mmattn.decoding.method import Branch, Card, Contrast, Step, plausible
from mmattn.decoding.vcd import STEPS, noised_branch


@dataclass(frozen=True)
class RBD(Contrast):
    """Away from the noised picture, towards the tokens that matter.

    Attributes:
        alpha_t: weight of the branch that leans on words; 0 switches it off.
        alpha_v: weight of the branch that sees the main image tokens alone; 0 switches it off.
        share: part of the image tokens that it sees.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        noise_step: see VCD.
    """

    alpha_t: float = 1.0
    alpha_v: float = 1.0
    share: float = 0.5
    beta: float = 0.1
    noise_step: int = 500

    name: ClassVar[str] = "rbd"
    card: ClassVar[Card] = Card(
        summary="Away from a noised picture, towards the image tokens that matter most.",
        source="RBD, PRCV 2024, arXiv 2409.06485, no code",
        formula="ours, from the abstract; the noise is VCD's",
        exact=False,
        branches=3,
        extra_passes="one prefill of one row per sample",
        defaults_from="ours: the paper's are not published; beta and noise_step as in VCD",
    )

    def __post_init__(self) -> None:
        for name in ("alpha_t", "alpha_v"):
            number(f"RBD {name}", getattr(self, name), 0)
        number("RBD share", self.share, 1e-6, 1)
        number("RBD beta", self.beta, 0, 1)
        whole("RBD noise_step", self.noise_step, 0, STEPS - 1)

    def branches(self) -> tuple[Branch, ...]:
        text = (noised_branch(self.noise_step),) if self.alpha_t else ()
        return text + ((Branch("main tokens", hidden=self._hidden),) if self.alpha_v else ())

    def contrast(self, step: Step) -> torch.Tensor:
        plain, *others = step.logits.unbind(1)
        mixed = plain
        if self.alpha_t:
            mixed = torch.lerp(others[0], plain, 1 + self.alpha_t)
        if self.alpha_v:
            mixed = torch.add(mixed, others[-1] - plain, alpha=self.alpha_v)
        return torch.where(plausible(plain, self.beta), mixed, -torch.inf)

    def _hidden(self, looks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        attention = looks["plain"].mean((0, 1))
        hidden = torch.ones_like(attention, dtype=torch.bool)
        hidden[attention.topk(max(1, round(self.share * len(attention)))).indices] = False
        return hidden
