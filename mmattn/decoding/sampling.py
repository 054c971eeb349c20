"""Choosing the next token from scores; every sample draws from its own stream, fixed before the first step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmattn.adapters import Sample
from mmattn.checks import number, whole
from mmattn.errors import MmattnError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        do_sample: draw at random; otherwise take the best.
        temperature: divides the scores before drawing.
        top_p: keep the smallest set of most probable tokens whose mass reaches this.
        top_k: keep this many most probable tokens; 0 keeps all.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if number("temperature", self.temperature, 0) < 1e-6:
            raise MmattnError(f"temperature must be above 0, not {self.temperature}", "For greedy: do_sample=False.")
        if number("top_p", self.top_p, 0, 1) == 0:
            raise MmattnError(f"top_p must be above 0, not {self.top_p}")
        whole("top_k", self.top_k, 0)

    def choose(self, scores: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Token ids (B,) from scores (B, V); `uniforms` (B,) in [0, 1) decide when drawing."""
        if not self.do_sample:
            return scores.argmax(-1)
        assert uniforms is not None
        below = scores - scores.amax(-1, keepdim=True)  # so that a low temperature cannot overflow
        ordered, order = (below / self.temperature).sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            ordered[:, self.top_k :] = -torch.inf
        mass = ordered.softmax(-1).cumsum(-1)
        before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
        # A token stays while the mass before it has not reached top_p, so the best one always stays.
        mass = ordered.masked_fill(before >= self.top_p, -torch.inf).softmax(-1).double().cumsum(-1)
        # Scaling by the last entry keeps a draw just below 1 inside the kept tokens despite rounding.
        pick = (mass <= uniforms[:, None] * mass[:, -1:]).sum(-1, keepdim=True)
        return order.gather(-1, pick)[:, 0]


def sample_keys(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    """For each sample its content, and how many equal ones stand before it, so that equal ones draw differently."""
    seen: Counter[str] = Counter()
    keys = []
    for sample in samples:
        content = "\0".join((*sample.image_keys, sample.prompt))
        keys.append((content, seen[content]))
        seen[content] += 1
    return keys


def stream(seed: int, purpose: str, key: str) -> torch.Generator:
    """The random stream of one sample for one purpose; it depends on nothing else."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
