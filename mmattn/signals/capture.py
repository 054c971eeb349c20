"""Rows of attention reduced as they are read: how much of each falls on the prompt, the answer and the picture.

B batch, H heads, R rows, S keys, D head dimension, P keys of the prompt (and, read at once, of the answer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmattn.attention import Edit, RowCapture, Site


@dataclass(kw_only=True)
class Masses(RowCapture):
    """Keeps, of each layer's rows, the mass on three kinds of keys: (B, H, R, 3), for prompt, answer and picture.

    Attributes:
        context: (B, P) bool, keys that hold the prompt; further keys belong to the answer.
        image: (B, P) bool, keys that hold image tokens.
        pointing: heads of each layer whose rows on `columns` are kept, summed over all of them.
        looked: that sum, (B, R, N).
    """

    context: torch.Tensor
    image: torch.Tensor
    pointing: Mapping[int, list[int]] | None = None
    looked: torch.Tensor | None = None

    def store(self, layer: int, weights: torch.Tensor) -> None:
        more = weights.shape[-1] - self.context.shape[1]
        context, image = (torch.nn.functional.pad(one, (0, more)) for one in (self.context, self.image))
        kinds = torch.stack([context, ~context, image], dim=-1).to(weights)
        self.weights[layer] = weights @ kinds[:, None]
        heads = (self.pointing or {}).get(layer)
        if heads:
            seen = self._reduced(weights[:, heads].sum(1, keepdim=True))[:, 0]
            self.looked = seen if self.looked is None else self.looked + seen


class HeadOutputs(Edit):
    """Keeps what each head gives at some rows, before it is projected, and changes nothing.

    Attributes:
        rows: (B, R) query indices.
        kept: layer -> (B, R, H, D) float32.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.kept: dict[int, torch.Tensor] = {}

    def output(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        index = self.rows.to(output.device)[:, :, None, None].expand(-1, -1, *output.shape[2:])
        self.kept[site.layer] = output.gather(1, index).float()
        return output

    def stacked(self) -> torch.Tensor:
        """(L, B, R, H, D) on the CPU."""
        return torch.stack([self.kept[layer].cpu() for layer in sorted(self.kept)])


def lookback(masses: torch.Tensor, context: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Lookback ratio (Chuang et al., EMNLP 2024): c / (c + n), c and n the mean weight of a key of prompt and answer.

    Args:
        masses: (..., B, H, R, 3) of `Masses`.
        context: (B,) how many tokens the prompt has.
        generated: (B, R) how many tokens of the answer each row can see; with none the ratio is 1.

    Returns:
        (..., B, H, R).
    """
    prompt = masses[..., 0] / context[:, None, None]
    answer = masses[..., 1] / generated[:, None, :].clamp(min=1)
    return prompt / (prompt + answer)
