"""TAG: the heads that look at the picture most, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.checks import whole
from mmattn.grounding.attention import Attention
from mmattn.grounding.locator import Cells, Locator, at_cells, grid


@dataclass(frozen=True, kw_only=True)
class Tag(Locator):
    """Tuning-free Attention-driven Grounding (Xu et al., AAAI 2025, arXiv 2412.10840; code HeimingX/TAG).

    For each chosen token the `heads` heads, of all layers, with the largest total attention to the picture (to its
    tiles, where it is tiled) are summed and divided by their number; the map is the mean over the tokens. For
    pictures in mixed tokens (InstructBLIP) it is multiplied by the Q-Former's cross-attention.

    Attributes:
        heads: K, how many heads are kept per token; a model with fewer keeps all.
    """

    heads: int = 10

    name: ClassVar[str] = "tag"
    summary: ClassVar[str] = "For each token the K heads with the most attention on the picture"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("heads", self.heads, 1)

    def cells(self, read: Attention) -> Cells:
        """The grid of one query: see the class."""
        weights = read.weights.flatten(0, 1)  # (L * H, rows, image tokens)
        mass = at_cells(read, weights).sum(-1)
        # A stable sort, so that equal masses choose the same heads on every machine.
        best = mass.argsort(dim=0, descending=True, stable=True)[: self.heads]
        kept = weights[best, torch.arange(weights.shape[1], device=weights.device)]  # (K, rows, image tokens)
        return grid(read, (kept.sum(0) / len(best)).mean(0))
