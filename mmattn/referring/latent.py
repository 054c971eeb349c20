"""ControlMLLM (Wu et al., NeurIPS 2024): a latent added to the image tokens, found by a few steps of gradient descent.

With a the attention of text rows after the picture on its tokens, mean over layers, heads and rows, and M the weight
of the region in each token's cell:

    activation = sum(a M) / sum(a),   energy = alpha (1 - activation)^2
    P <- beta (P - step of the gradient) + (1 - beta) P,   P = 0 at first

N image tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from mmattn.checks import number, whole
from mmattn.errors import MmattnError, unknown


@dataclass(frozen=True)
class ControlMLLM:
    """How the latent is found, and how the answer is decoded with it.

    Attributes:
        steps: updates of the latent.
        rate: learning rate.
        optimiser: "descent" or "adam" (0.9, 0.999, eps 1e-3).
        momentum: beta, the new latent's part in the running mean; 1 is no mean.
        alpha: factor of the energy.
        rows: "text", all text after the picture, or "last", the prompt's last token.
        first_layer, end_layer: decoder layers that are read, the end excluded, as parts of the depth.
        change: stop when the energy has changed by more than this part of the first one.
        contrast: weight of the scores without the latent, subtracted; 0 for none.
        beta: tokens below this part of the best one's probability are forbidden, with `contrast`.
    """

    steps: int = 5
    rate: float = 1.0
    optimiser: Literal["descent", "adam"] = "descent"
    momentum: float = 0.5
    alpha: float = 400.0
    rows: Literal["text", "last"] = "text"
    first_layer: float = 0.0
    end_layer: float = 1.0
    change: float = 0.25
    contrast: float = 0.0
    beta: float = 0.1

    def __post_init__(self) -> None:
        whole("steps", self.steps, 0)
        for name, low, high in (
            ("rate", 0, torch.inf), ("momentum", 0, 1), ("alpha", 0, torch.inf), ("first_layer", 0, 1),
            ("end_layer", 0, 1), ("change", 0, torch.inf), ("contrast", 0, torch.inf), ("beta", 0, 1),
        ):  # fmt: skip
            number(name, getattr(self, name), low, high)
        if self.optimiser not in ("descent", "adam"):
            raise unknown("optimiser", str(self.optimiser), ("descent", "adam"))
        if self.rows not in ("text", "last"):
            raise unknown("rows", str(self.rows), ("text", "last"))
        if self.first_layer >= self.end_layer:
            raise MmattnError("first_layer must be below end_layer", "As parts of the depth: 0 to 1 for all layers.")

    def layers(self, depth: int) -> tuple[int, ...]:
        """Those that are read, of `depth`: at least one."""
        first = min(round(self.first_layer * depth), depth - 1)
        return tuple(range(first, max(round(self.end_layer * depth), first + 1)))


# Layers 14 to 25 of 32, and 12 to 27 of 28.
PRESETS: dict[str, ControlMLLM] = {
    "controlmllm": ControlMLLM(),
    "controlmllm++": ControlMLLM(
        steps=3, rate=0.03, optimiser="adam", momentum=1.0, rows="last", first_layer=14 / 32, end_layer=26 / 32,
        contrast=0.7,
    ),
    "controlmllm++-qwen": ControlMLLM(
        steps=1, rate=0.02, optimiser="adam", momentum=1.0, rows="last", first_layer=12 / 28, contrast=0.01,
    ),
}  # fmt: skip


def preset(name: str | ControlMLLM) -> ControlMLLM:
    """Settings by the name of a published version, or as they are."""
    if isinstance(name, ControlMLLM):
        return name
    if name not in PRESETS:
        raise unknown("version", str(name), PRESETS)
    return PRESETS[name]


@dataclass(frozen=True)
class Descent:
    """The latent, and the activation of the region under the latents on the way, that without any first."""

    latent: torch.Tensor
    activations: tuple[float, ...]


def descend(how: ControlMLLM, activation: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> Descent:
    """A latent (N, D) under which `activation`, a scalar of it, is higher than under `start`.

    Stops early when the energy rises (and goes back one step), or has changed enough. Each step's gradient is that at
    the running mean; nothing is added up beside it.
    """
    latent = start
    moments = [torch.zeros_like(start), torch.zeros_like(start)]
    seen: list[float] = []
    before = start
    for step in range(how.steps + 1):
        last = step == how.steps
        with torch.inference_mode(False), torch.enable_grad():
            point = latent.clone().requires_grad_()
            active = activation(point)
            seen.append(float(active.detach()))
            if len(seen) > 1 and seen[-1] < seen[-2]:
                return Descent(before, tuple(seen[:-1]))
            if last or abs(_energy(how, seen[-1]) - _energy(how, seen[0])) > how.change * _energy(how, seen[0]):
                break
            slope = torch.autograd.grad(how.alpha * (1 - active) ** 2, point)[0].detach()
        moved = latent - how.rate * (_adam(slope, moments, step + 1) if how.optimiser == "adam" else slope)
        before, latent = latent, how.momentum * moved + (1 - how.momentum) * latent
    return Descent(latent, tuple(seen))


def _energy(how: ControlMLLM, activation: float) -> float:
    return how.alpha * (1 - activation) ** 2


def _adam(slope: torch.Tensor, moments: list[torch.Tensor], step: int) -> torch.Tensor:
    """Adam's direction; its two moments are kept in `moments`."""
    moments[0] = 0.9 * moments[0] + 0.1 * slope
    moments[1] = 0.999 * moments[1] + 0.001 * slope**2
    mean, square = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
    return mean / (square.sqrt() + 1e-3)
