"""PASTA (Zhang et al., ICLR 2024; public code QingruZhang/PASTA): play down what is not emphasised.

    E'_j = E_j + ln alpha     for tokens j of the prompt outside the marked ones, in chosen heads, before the softmax

Tokens that the model generates are left alone, and samples in which nothing is marked. Heads are meant to be chosen by
profiling each model on its task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number
from mmattn.decoding.method import Card
from mmattn.decoding.steering import Steer, Steering, check_place
from mmattn.errors import MmattnError


@dataclass(frozen=True)
class PASTA(Steering):
    """Weaken attention to the rest of the prompt.

    Attributes:
        alpha: factor on the rest, before renormalising; 1 is the plain model.
        on: what is emphasised: "instruction" (the user's words), "image", or "mark" (what `emphasise=...` says).
        heads: "all", or pairs layer:head such as "12:3 14:0".
    """

    alpha: float = 0.01
    on: str = "instruction"
    heads: str = "all"

    name: ClassVar[str] = "pasta"
    card: ClassVar[Card] = Card(
        summary="Weaken attention to everything in the prompt but the instruction.",
        source="PASTA, ICLR 2024, code QingruZhang/PASTA",
        exact=True,
        branches=1,
        extra_passes="none",
        defaults_from="alpha: public code; heads: ours, since the code's are of other models",
    )

    def __post_init__(self) -> None:
        number("PASTA alpha", self.alpha, 1e-6)
        check_place("PASTA", self.on)
        head_pairs("PASTA", self.heads)

    def edits(self) -> tuple[Edit, ...]:
        heads = head_pairs("PASTA", self.heads)
        return () if self.alpha == 1 else (Weaken(self.on, math.log(self.alpha), heads),)


def head_pairs(method: str, given: str) -> tuple[tuple[int, int], ...] | None:
    """(layer, head) pairs, or None for all."""
    if given == "all":
        return None
    pairs = [word.split(":") for word in given.split()]
    if not pairs or not all(len(pair) == 2 and all(one.isdecimal() for one in pair) for pair in pairs):
        raise MmattnError(
            f"{method} does not know the heads {given!r}", 'Write "all", or layer:head as in "12:3 14:0".'
        )
    return tuple((int(layer), int(head)) for layer, head in pairs)


def heads_of(
    method: str, pairs: Sequence[tuple[int, int]], layer: int, depth: int, count: int | None = None
) -> list[int]:
    """Which heads of `layer` the (layer, head) `pairs` name, in a model of `depth` layers with `count` heads.

    Raises:
        MmattnError: the model has not got them.
    """
    if max(one for one, _ in pairs) >= depth:
        raise MmattnError(f"{method}'s heads name a layer beyond the {depth} of this model")
    if count is not None and max(head for _, head in pairs) >= count:
        raise MmattnError(f"{method}'s heads name a head beyond the {count} of this model")
    return [head for one, head in pairs if one == layer]


@dataclass(frozen=True)
class Weaken(Steer):
    """Add `amount` to the scores of the prompt's unmarked tokens, in `heads` (None for all)."""

    amount: float
    heads: tuple[tuple[int, int], ...] | None

    by_layer: ClassVar[bool] = True

    def wants(self, layer: int, depth: int) -> bool:
        return self.heads is None or bool(heads_of("PASTA", self.heads, layer, depth))

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        return {"prompt": torch.zeros(rows, keys, dtype=torch.bool, device=device)}

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        prompt = site.recall("prompt", lambda: torch.ones_like(site.image[:, 0, 0, : site.known]))
        marked = self.marked(site)
        rest = site.per_key(prompt) & ~marked & marked.any(-1, keepdim=True)
        changed = scores + self.amount * rest
        if self.heads is None:
            return changed
        count = scores.shape[1]
        chosen = heads_of("PASTA", self.heads, site.layer, site.depth, count)
        kept = torch.zeros((), dtype=torch.bool, device=scores.device)
        for head in chosen:
            kept = kept | (torch.arange(count, device=scores.device) == head)
        return torch.where(kept[None, :, None, None], changed, scores)
