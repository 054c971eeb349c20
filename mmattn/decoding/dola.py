"""DoLa (Chuang et al., ICLR 2024; code voidism/DoLa, and transformers up to 4.5x): contrast with an early layer.

The head reads the hidden state h_l after l layers, without the final norm, for some candidates l: q_l is the softmax of
its scores. The q_l that differs most from the answer p is taken off:

    M = (p + q_l) / 2,    d_l = (KL(M, p) + KL(M, q_l)) / 2,    l* = argmax d_l
    out = ln p - ln q_l*,    kept where p(token) >= beta * max p

The divergence is as transformers computes it. In that of the paper, by Jensen and Shannon, the arguments of each KL
stand the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.checks import number, whole
from mmattn.decoding.exits import layer_numbers
from mmattn.decoding.method import Card, Exits, Method, Step, plausible

# Decoders deeper than SHALLOW have their candidates among the first or last REACH layers, shallower ones in a half.
SHALLOW, REACH = 40, 20


@dataclass(frozen=True)
class DoLa(Method):
    """Take off what an early layer says.

    Attributes:
        layers: candidates: "high" (every second layer of the upper half), "low" (of the lower half), or numbers such as
            "0 2 4" or "16-30". 0 is the embedded token.
        beta: plausibility cut, relative to the most probable token; 0 switches it off.
        alpha: weight of the early layer; 1 is DoLa, 0 the plain model.
        shared: 1 lets the batch's mean divergence choose one layer for all its samples, as the code does; answers then
            depend on the other samples.
        norm: 1 reads early states through the final norm.
    """

    layers: str = "high"
    beta: float = 0.1
    alpha: float = 1.0
    shared: int = 0
    norm: int = 0

    name: ClassVar[str] = "dola"
    card: ClassVar[Card] = Card(
        summary="Take off what the head makes of an early layer, that which differs most.",
        source="DoLa, ICLR 2024, arXiv 2309.03883, code voidism/DoLa and transformers 4.49",
        formula="code of transformers 4.49; alpha and norm are ours, and so is a layer for each sample",
        exact=True,
        branches=1,
        extra_passes="none; the head reads every candidate layer",
        defaults_from="transformers, which advises layers='high' for short answers and a repetition penalty",
        presets={"long answers": "dola(layers='low')", "the batch's mean, as in transformers": "dola(shared=1)"},
    )

    def __post_init__(self) -> None:
        if self.layers not in ("high", "low"):
            layer_numbers("DoLa", self.layers)
        number("DoLa beta", self.beta, 0, 1)
        number("DoLa alpha", self.alpha, 0)
        whole("DoLa shared", self.shared, 0, 1)
        whole("DoLa norm", self.norm, 0, 1)

    @property
    def rules(self) -> bool:
        return bool(self.alpha)

    @property
    def captured(self) -> bool:
        return not self.shared  # a captured batch has rows that stand for no sample

    def exits(self, depth: int, tied: bool) -> Exits | None:
        if not self.alpha:
            return None
        return Exits(self._candidates(depth, tied), bool(self.norm))

    def _candidates(self, depth: int, tied: bool) -> tuple[int, ...]:
        half = depth // 2 if depth <= SHALLOW else REACH
        if self.layers == "high":
            return tuple(range(depth // 2 if depth <= SHALLOW else depth - REACH, depth, 2))
        if self.layers == "low":
            # Tied to the embeddings, the head reads from a bare token that token itself.
            first = {1: 0, 2: 1}.get(depth, 2) if tied else 0
            return tuple(range(first, half, 2)) or (first,)
        return layer_numbers("DoLa", self.layers)

    def combine(self, step: Step) -> torch.Tensor:
        if step.exits is None:
            return step.logits[:, 0]
        final, early = step.logits[:, 0].log_softmax(-1), step.exits.log_softmax(-1)
        apart = divergence(final[:, None], early)
        if self.shared:
            apart = apart.mean(0, keepdim=True).expand_as(apart)
        index = apart.argmax(-1)[:, None, None].expand(-1, 1, early.shape[-1])
        base = early.gather(1, index)[:, 0]
        return (final - self.alpha * base).masked_fill(~plausible(final, self.beta), -torch.inf)


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(KL(M, p) + KL(M, q)) / 2 (...) of log-probabilities (..., V)."""
    middle = (first.exp() + second.exp()) / 2
    own = torch.xlogy(middle, middle)
    # 0 times the logarithm of an impossible token is no number.
    apart = own - torch.where(middle > 0, middle * (first + second) / 2, 0)
    return apart.sum(-1)
