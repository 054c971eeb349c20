"""Attention Calibration (Yu et al., ICML 2024; public code GATECH-EIC/ACT): take attention from sinks in the words.

A key is a head's sink if the rows that can see it give it much attention on average. All sinks but the first lose a
part of it to the other keys:

    drawn_j = mean of A_ij over the prompt's rows i >= j;    sinks: drawn_j > threshold, the first of them excepted
    A'_ij = beta A_ij                                          for sinks j
    A'_ij = A_ij + (1 - beta) (sum over sinks) A_ij / (sum over the others)    for all others

The public code edits the rows of the prompt. Here rows of later steps are edited, too, by the prompt's sinks, which is
ours; so is `on`, by which marked keys alone get what the sinks lose. The code's heads are found by calibration, each
tried on some hundred samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site, View
from mmattn.checks import number, whole
from mmattn.decoding.method import Card
from mmattn.decoding.pasta import head_pairs, heads_of
from mmattn.decoding.steering import PLACES, Steer, Steering, check_place


@dataclass(frozen=True)
class ACT(Steering):
    """Take attention from all sinks but the first.

    Attributes:
        beta: what is left of a sink's attention; 1 is the plain model.
        threshold: a key is a sink if it draws more than this on average.
        heads: "all", or pairs layer:head such as "12:3 14:0".
        start: first layer that is edited.
        spared: how many of the last layers are not.
        on: who gets what the sinks lose: "rest" (all that are none), or those of them in the "instruction" (the user's
            words), the "image" or the "mark" (what `emphasise=...` says).
    """

    beta: float = 0.4
    threshold: float = 0.1
    heads: str = "all"
    start: int = 2
    spared: int = 1
    on: str = "rest"

    name: ClassVar[str] = "act"
    card: ClassVar[Card] = Card(
        summary="Take attention from all sinks but the first, and share it out among the other tokens.",
        source="ACT, ICML 2024, arXiv 2406.15765, code GATECH-EIC/ACT",
        formula="public code; rows after the prompt, and `on`, are ours",
        exact=False,
        branches=1,
        extra_passes="none; every row of the prompt is computed twice",
        defaults_from="public code; heads: ours, since the code's are of other models",
    )

    def __post_init__(self) -> None:
        number("ACT beta", self.beta, 0, 1)
        number("ACT threshold", self.threshold, 0, 1)
        head_pairs("ACT", self.heads)
        whole("ACT start", self.start, 0)
        whole("ACT spared", self.spared, 0)
        check_place("ACT", self.on, ("rest", *PLACES))

    def edits(self) -> tuple[Edit, ...]:
        if self.beta == 1:
            return ()
        heads = head_pairs("ACT", self.heads)
        return (Calibrate(self.on, self.beta, self.threshold, heads, self.start, self.spared),)


@dataclass(frozen=True)
class Calibrate(Steer):
    """See the module. `heads` None: all."""

    beta: float
    threshold: float
    heads: tuple[tuple[int, int], ...] | None
    start: int
    spared: int

    views: ClassVar[bool] = True
    every_row: ClassVar[bool] = True

    def wants(self, layer: int, depth: int) -> bool:
        if self.heads is not None and not heads_of("ACT", self.heads, layer, depth):
            return False
        return self.start <= layer < depth - self.spared

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"drawn": torch.zeros(rows, keys, heads, dtype=torch.bool, device=device)}

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        sinks = site.recall("drawn", lambda: self._sinks(weights, site)).mT
        sinks = torch.nn.functional.pad(sinks, (0, weights.shape[-1] - sinks.shape[-1]))[:, :, None]
        rest = weights * ~sinks
        if self.on != "rest":
            rest = rest * self.marked(site)
        total = rest.sum(-1, keepdim=True)
        freed = (1 - self.beta) * (weights * sinks).sum(-1, keepdim=True)
        moved = torch.where(sinks, self.beta * weights, weights + freed * rest / total)
        return torch.where(total > 0, moved, weights)

    def _sinks(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        """(B, keys, H) bool, before any row is edited; an encoder-decoder's prompt is one row."""
        drawn = weights[:, :, 0] if site.view is None else _drawn(site.view)
        large = drawn > self.threshold
        sinks = large & (large.cumsum(-1) > 1)
        if self.heads is not None:
            count = weights.shape[1]
            chosen = heads_of("ACT", self.heads, site.layer, site.depth, count)
            mine = torch.tensor([head in chosen for head in range(count)], device=sinks.device)
            sinks = sinks & mine[:, None]
        return sinks.mT.contiguous()


def _drawn(view: View) -> torch.Tensor:
    """Mean attention (B, H, S) on each key, over the rows that can see it."""
    batch, _, length, _ = view.call.query.shape
    every = torch.arange(length, device=view.call.query.device).expand(batch, -1)
    total = seen = torch.zeros((), device=every.device)
    for scores in view.portions(every):
        total = total + scores.softmax(-1).nan_to_num(0).sum(2)
        seen = seen + (scores > torch.finfo(torch.float32).min / 2).sum(2)
    return total / seen.clamp(min=1)
