"""DeCo (Wang et al., ICLR 2025; public code zjunlp/Deco): let an earlier layer correct the last one.

Candidates C are the most probable tokens, as few as reach the mass top_p, top_k of them at most. The head reads the
hidden state h_l after l layers, without the final norm: q_l = softmax(z_l), z_l = head(h_l). The layer that is surest
of a candidate has its say:

    l*, w* = argmax over l, w in C of q_l(w),    m = q_l*(w*)
    out = z + alpha m z_l*   for tokens of C;   others are forbidden
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.checks import number, whole
from mmattn.decoding.exits import layer_numbers
from mmattn.decoding.method import Card, Exits, Method, Step

# The published layers, and the depth of the decoder that they were published for.
FIRST, LAST, DEPTH = 20, 28, 32


@dataclass(frozen=True)
class DeCo(Method):
    """Add the scores of the earlier layer that is surest of a probable token.

    Attributes:
        alpha: weight of the earlier layer; 0 is the plain model.
        top_k, top_p: how many tokens, at most, and how much mass the candidates have.
        layers: the earlier layers: "auto" is 20-28 in a decoder of 32 and in proportion in others; or numbers such as
            "20-28" or "4 6".
        norm: 1 reads earlier states through the final norm.
    """

    alpha: float = 0.6
    top_k: int = 20
    top_p: float = 0.9
    layers: str = "auto"
    norm: int = 0

    name: ClassVar[str] = "deco"
    card: ClassVar[Card] = Card(
        summary="Add the scores of the earlier layer that is surest of a probable token.",
        source="DeCo, ICLR 2025, code zjunlp/Deco",
        formula="public code; norm and the layers of other depths than 32 are ours",
        exact=True,
        branches=1,
        extra_passes="none; the head reads every earlier layer",
        defaults_from="public code, for LLaVA-1.5-7B",
    )

    def __post_init__(self) -> None:
        number("DeCo alpha", self.alpha, 0)
        whole("DeCo top_k", self.top_k, 1)
        number("DeCo top_p", self.top_p, 0, 1)
        whole("DeCo norm", self.norm, 0, 1)
        if self.layers != "auto":
            layer_numbers("DeCo", self.layers)

    @property
    def rules(self) -> bool:
        return bool(self.alpha)

    def exits(self, depth: int, tied: bool) -> Exits | None:  # noqa: ARG002
        if not self.alpha:
            return None
        if self.layers != "auto":
            return Exits(layer_numbers("DeCo", self.layers), bool(self.norm))
        first, last = (round(depth * one / DEPTH) for one in (FIRST, LAST))
        return Exits(tuple(range(first, min(last, depth - 1) + 1)), bool(self.norm))

    def combine(self, step: Step) -> torch.Tensor:
        if step.exits is None:
            return step.logits[:, 0]
        plain = step.logits[:, 0]
        likely = candidates(plain, self.top_k, self.top_p)
        sure = step.exits.softmax(-1).masked_fill(~likely[:, None], 0).amax(-1)
        most, layer = sure.max(-1)
        early = step.exits.gather(1, layer[:, None, None].expand(-1, 1, plain.shape[-1]))[:, 0]
        return (plain + self.alpha * most[:, None] * early).masked_fill(~likely, -torch.inf)


def candidates(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The fewest most probable tokens that reach the mass `top_p`, `top_k` of them at most: (B, V) bool."""
    mass, order = logits.softmax(-1).topk(min(top_k, logits.shape[-1]), dim=-1)
    before = torch.nn.functional.pad(mass.cumsum(-1)[:, :-1], (1, 0))
    # The first one always stays, whatever top_p is.
    kept = (before < top_p) | (torch.arange(mass.shape[-1], device=mass.device) == 0)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept)
