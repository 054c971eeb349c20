"""Chosen rows of one attention call, computed explicitly: scores, weights, output. Memory is linear in S.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dimension, R rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Bytes that one tensor of weights may take in any case: bounds the memory, not the result.
PORTION = 1 << 24


def at_once(weights: int, queries: int) -> int:
    """How many rows to compute together, each of so many `weights`, in a call whose queries take so many bytes."""
    return max(max(PORTION, queries) // (4 * weights), 1)


@dataclass(frozen=True)
class Call:
    """The arguments of one attention call.

    Attributes:
        query: (B, H, T, D) after rotary embedding. key, value: (B, G, S, D) after the cache, heads not repeated.
        mask: bool (B or 1, 1, T, S) with True = visible, additive float of that shape, or None = `causal`.
        scaling: factor on the scores.
        causal: what a missing mask means when T > 1.
        bias: (B or 1, H, T, S) added to the scores, such as T5's relative positions; or None.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    causal: bool = True
    bias: torch.Tensor | None = None

    @property
    def portion(self) -> int:
        """How many rows to compute at once: weights as large as the queries, which others of the call exceed by far.

        So a prompt's rows come in as many portions however long it is, and each portion reads all keys.
        """
        batch, heads = self.query.shape[:2]
        return at_once(batch * heads * self.key.shape[2], self.query.nbytes)

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """Pre-softmax scores (B, H, R, S) float32 of `rows` (B, R) in 0..T-1; hidden keys are -inf."""
        batch, heads, length, dim = self.query.shape
        rows = rows.to(self.query.device)
        chosen = self.query
        if length > 1:
            chosen = chosen.gather(2, rows[:, None, :, None].expand(batch, heads, -1, dim))
        scores = _fold(chosen, self.key.shape[1]) @ self.key.transpose(-1, -2)
        scores = scores.reshape(batch, heads, rows.shape[1], -1).float() * self.scaling
        if self.bias is not None:
            scores = scores + _rows_of(self.bias, rows)[..., : scores.shape[-1]].float()
        return self._hide(scores, rows)

    def output(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights (B, H, R, S) applied to the values: (B, R, H, D)."""
        batch, heads, rows, _ = weights.shape
        folded = _fold(weights.to(self.value.dtype), self.value.shape[1]) @ self.value
        return folded.reshape(batch, heads, rows, -1).transpose(1, 2)

    def _hide(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        length, keys = self.query.shape[2], scores.shape[-1]
        if self.mask is not None:
            picked = _rows_of(self.mask, rows)[..., :keys]
            return torch.where(picked, scores, -torch.inf) if picked.dtype == torch.bool else scores + picked.float()
        if self.causal and length > 1:
            # Also right for an empty static cache: the kernel then sees only the first T keys.
            hidden = torch.arange(keys, device=rows.device) > rows[:, None, :, None]
            return scores.masked_fill(hidden, -torch.inf)
        return scores


def _fold(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, H, R, X) -> (B, G, H / G * R, X): heads that share a key head become more rows of it, so that keys are
    read once and never repeated.
    """
    batch, heads, count, width = rows.shape
    return rows.reshape(batch, groups, heads // groups * count, width)


def _rows_of(full: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, R) of (B or 1, H or 1, T, S): (B, H or 1, R, S)."""
    if full.shape[2] == 1:
        return full
    full = full.expand(len(rows), -1, -1, -1)
    index = rows[:, None, :, None].expand(-1, full.shape[1], -1, full.shape[3])
    return full.gather(2, index)
