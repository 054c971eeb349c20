"""Vision-aware Head Reinforcement (He et al., ACL 2025, arXiv 2412.13949).

Heads whose output changes most when the picture is taken away are made louder. For each layer, at the prompt's last
token, with A_i the output of head i before the output projection, and A0_i that of the same prompt without picture:

    VHD_i = |A_i - A0_i|,   set to 0 where VHD_i > mean + deviation over the heads  and  |A0_i| > mean + deviation
    head i is chosen where VHD_i > median of VHD over the heads;   its output is multiplied by alpha

Layer by layer within one prefill that both prompts share: when a layer chooses, those below it are already
reinforced, in both. The choice holds for the sample's whole answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number, whole
from mmattn.decoding.method import Branch, Card, Method, without_pictures
from mmattn.errors import MmattnError

REFERENCE = "without picture"


@dataclass(frozen=True)
class VHR(Method):
    """Multiply the output of heads that the picture moves.

    Attributes:
        alpha: the factor; 1 is the plain model.
        layers: how many of the last layers are reinforced.
        drop_outliers: 1 leaves out heads that surge when the picture is gone, 0 does not.
    """

    alpha: float = 2.0
    layers: int = 14
    drop_outliers: int = 1

    name: ClassVar[str] = "vhr"
    card: ClassVar[Card] = Card(
        summary="Multiply the output of heads that change most when the picture is taken away.",
        source="VHR, ACL 2025, arXiv 2412.13949, code jinghan1he/VHR",
        formula="paper, equations 4, 6 and 7, as others restate them",
        exact=True,
        branches=2,
        extra_passes="the second row per sample takes part in the prefill only",
        defaults_from="paper, for LLaVA-1.5 and LLaVA-NeXT with 32 layers; 18 layers for InstructBLIP",
        presets={"InstructBLIP": "vhr(layers=18)"},
    )

    def __post_init__(self) -> None:
        number("VHR alpha", self.alpha, 0)
        whole("VHR layers", self.layers, 1)
        whole("VHR drop_outliers", self.drop_outliers, 0, 1)

    def edits(self) -> tuple[Edit, ...]:
        return () if self.alpha == 1 else (Reinforce(self.alpha, self.layers, bool(self.drop_outliers)),)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.alpha == 1 else (Branch(REFERENCE, sample=without_pictures, decoded=False),)


@dataclass(frozen=True)
class Reinforce(Edit):
    """See the module."""

    alpha: float
    layers: int
    drop_outliers: bool

    def wants(self, layer: int, depth: int) -> bool:
        return layer >= depth - self.layers

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        return {"factors": torch.ones(rows, 1, heads, 1, device=device)}

    def output(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        factors = site.recall("factors", lambda: self._factors(output, site))
        return output * factors.to(output.dtype)

    def _factors(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        """(B, 1, H, 1): the same for all branches of a sample."""
        if REFERENCE not in site.branches:
            raise MmattnError(
                "VHR chooses heads by a second prompt, which a single forward has not",
                "Use generate(..., method=..., capture=Capture()) to see its attention.",
            )
        count = len(site.branches)
        last = output[:, -1].float()
        last = last.view(-1, count, *last.shape[1:])  # (samples, K, H, D)
        blind = last[:, site.branches.index(REFERENCE)]
        chosen = vision_heads(last[:, 0], blind, self.drop_outliers)
        factors = torch.where(chosen, self.alpha, 1.0)
        return factors.repeat_interleave(count, 0)[:, None, :, None]


def vision_heads(seen: torch.Tensor, blind: torch.Tensor, drop_outliers: bool) -> torch.Tensor:
    """Heads to reinforce, (B, H) bool, from their outputs (B, H, D) with and without the picture."""
    moved, loud = (seen - blind).norm(dim=-1), blind.norm(dim=-1)
    if drop_outliers:
        surging = _above(moved) & _above(loud)
        moved = moved.masked_fill(surging, 0)
    ordered = moved.sort(dim=-1).values
    middle = (ordered.shape[-1] - 1) // 2
    median = (ordered[..., middle] + ordered[..., ordered.shape[-1] // 2]) / 2
    chosen: torch.Tensor = moved > median[..., None]
    return chosen


def _above(values: torch.Tensor) -> torch.Tensor:
    """Those (B, H) more than one deviation above the mean of their row."""
    return values > values.mean(-1, keepdim=True) + values.std(-1, correction=0, keepdim=True)
