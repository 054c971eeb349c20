"""Instruction Contrastive Decoding (Wang et al., ACL Findings 2024; public code p1k0pan/ICD).

A role that confuses the model, said before the question, brings out what it hallucinates; the answer moves away:

    z_icd = (1 + alpha) z - alpha z',   kept where p(token) >= beta * max p under the question alone.

The public code puts the role into the system prompt (LLaVA) or into the Q-Former's words alone (InstructBLIP). Here it
stands before the user's words in every family, which is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from mmattn.adapters import Sample
from mmattn.checks import number
from mmattn.decoding.method import Branch, Card, Contrast, Step, contrasted
from mmattn.errors import MmattnError


@dataclass(frozen=True)
class ICD(Contrast):
    """Contrast the question with the same question under a disturbing role.

    Attributes:
        alpha: strength of the contrast; 0 leaves the scores as they are.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        role: the disturbance, put before the prompt with a space between.
    """

    alpha: float = 1.0
    beta: float = 0.1
    role: str = "You are a confused objects detector to provide a fuzzy overview or impression of the image."

    name: ClassVar[str] = "icd"
    card: ClassVar[Card] = Card(
        summary="Contrast with the same question under a role that confuses.",
        source="ICD, ACL Findings 2024, code p1k0pan/ICD",
        formula="public code; where the role stands is ours",
        exact=False,
        branches=2,
        extra_passes="none",
        defaults_from="public code, which tries five roles and keeps the best; this is its last one",
    )

    def __post_init__(self) -> None:
        number("ICD alpha", self.alpha, 0)
        number("ICD beta", self.beta, 0, 1)
        if not isinstance(self.role, str) or not self.role.strip():
            raise MmattnError("ICD role is empty", "Write a sentence that disturbs.")

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("disturbed words", sample=self._disturbed),) if self.alpha else ()

    def contrast(self, step: Step) -> torch.Tensor:
        return contrasted(step.logits, self.alpha, self.beta)

    def _disturbed(self, sample: Sample) -> Sample:
        return replace(sample, prompt=f"{self.role} {sample.prompt}")
