"""Self-Introspective Decoding (Huo et al., ICLR 2025; public code huofushuo/SID).

A branch that, from layer `start` on, sees only the image tokens that the layer before looked at least tells what to say
from habit; the answer moves away from it. At each call, for the token that decides the next one:

    a = attention on the image tokens in layer start - 1, mean over heads
    all image tokens but the `share` with the smallest a are hidden from all rows of the call, in layers from start on
    z_sid = (1 + alpha) z - alpha z',    kept where p(token) >= beta * max p
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number, whole
from mmattn.decoding.method import Branch, Card, Contrast, Step, contrasted

LEAST = "least attended tokens"


@dataclass(frozen=True)
class SID(Contrast):
    """Contrast with the image tokens that an early layer looks at least.

    Attributes:
        alpha: strength of the contrast; 0 leaves the scores as they are.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        start: the first layer in which the other image tokens are hidden; the one before it chooses.
        share: part of the image tokens that stays.
    """

    alpha: float = 1.0
    beta: float = 0.1
    start: int = 2
    share: float = 0.174

    name: ClassVar[str] = "sid"
    card: ClassVar[Card] = Card(
        summary="Contrast with the image tokens that an early layer looks at least.",
        source="SID, ICLR 2025, arXiv 2408.02032, code huofushuo/SID",
        exact=True,
        branches=2,
        extra_passes="none",
        defaults_from="the code's POPE script, which keeps 100 of 576 tokens; its CHAIR script keeps 50",
        presets={"the code's CHAIR script": "sid(share=0.087)"},
    )

    def __post_init__(self) -> None:
        number("SID alpha", self.alpha, 0)
        for name in ("beta", "share"):
            number(f"SID {name}", getattr(self, name), 0, 1)
        whole("SID start", self.start, 1)

    def edits(self) -> tuple[Edit, ...]:
        return (HideSeen(self.start, self.share),) if self.alpha else ()

    def branches(self) -> tuple[Branch, ...]:
        return (Branch(LEAST),) if self.alpha else ()

    def contrast(self, step: Step) -> torch.Tensor:
        return contrasted(step.logits, self.alpha, self.beta)


@dataclass(frozen=True)
class HideSeen(Edit):
    """See the module."""

    start: int
    share: float

    branches: ClassVar[tuple[str, ...] | None] = (LEAST,)
    views: ClassVar[bool] = True
    every_row: ClassVar[bool] = True
    common: ClassVar[bool] = True

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        return layer >= self.start - 1

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        return {"hidden": torch.zeros(rows, keys, dtype=torch.bool, device=device)}

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        if site.layer >= self.start:
            return scores.masked_fill(site.per_key(site.memory["hidden"].to(scores.device)), -torch.inf)
        last = scores if site.view is None else site.view.last()
        image = site.image[:, 0, 0]
        looks = last.softmax(-1).mean(1)[:, 0]
        site.tell("hidden", image & ~lowest(looks, image, self.share))
        return scores


def lowest(values: torch.Tensor, image: torch.Tensor, share: float) -> torch.Tensor:
    """The `share` of the image tokens with the smallest of `values` (..., S), where `image` (..., S): (..., S) bool."""
    count = (share * image.sum(-1, keepdim=True)).round()
    rank = values.masked_fill(~image, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    return image & (rank < count)
