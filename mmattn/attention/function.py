"""The attention function that transformers calls: the fast kernel for every row, weights for the rows asked for.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dimension, R rows asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from mmattn.attention.session import NAME, active_captures


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' SDPA attention, bit for bit; readers of this module's layer see the rows they asked for.

    Args:
        query: (B, H, T, D) after rotary embedding. key, value: (B, G, S, D) after the cache, heads not repeated.
        attention_mask: bool (B or 1, 1, T, S) with True = visible, additive float of that shape, or None = causal.

    Returns:
        (B, T, H, D), and None in place of the weights.
    """
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    for layer, capture in active_captures(module):
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        capture.store(layer, row_weights(query, key, attention_mask, capture.rows, scale, bool(causal)))
    return output, None


def row_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    rows: torch.Tensor,
    scaling: float,
    causal: bool = True,
) -> torch.Tensor:
    """Post-softmax weights of chosen query rows, in memory linear in S.

    Args:
        query, key, attention_mask: as in `attention_forward`.
        rows: (B, R) query indices; negative ones count from the end.
        scaling: factor on the scores before the softmax.
        causal: what a missing mask means when T > 1.

    Returns:
        (B, H, R, S) float32; each row sums to 1.
    """
    batch, heads, length, dim = query.shape
    groups, keys = key.shape[1], key.shape[2]
    index = rows.to(query.device) % length
    wanted = index.shape[1]
    chosen = query.gather(2, index[:, None, :, None].expand(batch, heads, wanted, dim))
    # Query heads that share a key head become more rows of that head: keys are read once, never repeated.
    folded = chosen.reshape(batch, groups, (heads // groups) * wanted, dim)
    scores = (folded @ key.transpose(-1, -2)).reshape(batch, heads, wanted, keys).float() * scaling
    if attention_mask is not None:
        picked = attention_mask.expand(batch, -1, -1, -1)[torch.arange(batch, device=index.device)[:, None], :, index]
        picked = picked.transpose(1, 2)[..., :keys]
        scores = scores.masked_fill(~picked, -torch.inf) if picked.dtype == torch.bool else scores + picked.float()
    elif causal and length > 1:
        # Also right for an empty static cache: the kernel then sees only the first T keys.
        hidden = torch.arange(keys, device=index.device) > index[:, None, :, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
