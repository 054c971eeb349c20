"""Visual Contrastive Decoding (Leng et al., CVPR 2024; public code DAMO-NLP-SG/VCD).

The same question about a noised picture shows what the model would say from habit; the answer moves away from it:

    z_cd = (1 + alpha) z - alpha z',   kept where p(token) >= beta * max p under the plain picture.

The noise follows a diffusion schedule of 1000 steps on the *normalised* pixels,
v' = sqrt(abar_t) v + sqrt(1 - abar_t) eps, with beta_i = sigmoid(x_i) (0.5e-2 - 1e-5) + 1e-5 for x_i evenly spaced
in -6..6 and abar_t the running product of 1 - beta_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from mmattn.checks import number, whole
from mmattn.decoding.method import Branch, Card, Method, Step, contrasted

STEPS = 1000


@lru_cache(maxsize=1)
def schedule() -> torch.Tensor:
    """abar_t for t = 0..999: the share of the signal's variance left after t steps, float64."""
    x = torch.linspace(-6, 6, STEPS, dtype=torch.float64)
    betas = torch.sigmoid(x) * (0.5e-2 - 1e-5) + 1e-5
    share: torch.Tensor = torch.cumprod(1 - betas, dim=0)
    return share


def add_noise(pixels: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
    """Diffuse normalised pixels of any shape to `step` (0..999); the draw is made on the CPU in float32."""
    kept = schedule()[step].item()
    noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
    mixed: torch.Tensor = math.sqrt(kept) * pixels.float().cpu() + math.sqrt(1 - kept) * noise
    return mixed.to(pixels)


@dataclass(frozen=True)
class VCD(Method):
    """Contrast the picture with a noised copy of itself.

    Attributes:
        alpha: strength of the contrast; 0 leaves the scores as they are.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        noise_step: how far the copy is diffused, 0..999 (500 keeps 86 % of the amplitude, 999 keeps 29 %).
    """

    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500

    name: ClassVar[str] = "vcd"
    card: ClassVar[Card] = Card(
        summary="Contrast with a noised copy of the picture.",
        source="Leng et al., CVPR 2024, arXiv 2311.16922; code DAMO-NLP-SG/VCD",
        exact=True,
        branches=2,
        extra_passes="vision tower and prefill twice; decode steps share one call",
        defaults_from="argparse defaults of the public code (its LLaVA shell script uses beta 0.2)",
        presets={"the code's LLaVA script": "vcd(beta=0.2)"},
    )

    def __post_init__(self) -> None:
        number("VCD alpha", self.alpha, 0)
        number("VCD beta", self.beta, 0, 1)
        whole("VCD noise_step", self.noise_step, 0, STEPS - 1)

    def branches(self) -> tuple[Branch, ...]:
        return (noised_branch(self.noise_step),)

    def combine(self, step: Step) -> torch.Tensor:
        return contrasted(step.logits, self.alpha, self.beta)


def noised_branch(step: int) -> Branch:
    """The sample with its pictures diffused to `step`."""
    return Branch("noised picture", pixels=lambda pixels, generator: add_noise(pixels, step, generator))
