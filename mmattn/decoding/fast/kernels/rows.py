"""Single rows of attention: of a prompt, to be edited, and of a decode step, to be kept.

Shapes: B samples, R rows of a prompt's T tokens, S keys, M rows of a step, H query heads in G groups that share a key
head, D head dimension, C slots of the cache, N slots to be kept.
"""

# Triton reads the functions below as its own language, in which only compile-time constants are annotated.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_scores(
    qkv,  # (B T, (H + 2 G) D), query rotated
    keys,  # (B, G, C, D)
    rows,  # (B, R) int32, of 0..T-1
    hidden,  # (B, S) int8, 1 on keys that nothing may see
    scores,  # (B, H, R, S) float32
    scale,
    T,
    R,
    S,
    C,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scores of chosen rows of a prompt whose T tokens are the last of S; -inf on hidden keys and on those after it."""
    sample = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    s = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    row = tl.load(rows + sample * R + r, mask=r < R, other=0)
    at = (sample * T + row) * ((H + 2 * G) * D) + head * D
    query = tl.load(qkv + at[:, None] + d[None, :], mask=(r[:, None] < R) & (d[None, :] < D), other=0.0)
    base = (sample * G + head // (H // G)) * C
    inside = (s[:, None] < S) & (d[None, :] < D)
    key = tl.load(keys + (base + s)[:, None] * D + d[None, :], mask=inside, other=0.0)
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    shown = tl.load(hidden + sample * S + s, mask=s < S, other=1) == 0
    seen = shown[None, :] & (s[None, :] <= (S - T + row)[:, None])
    there = ((sample * H + head) * R + r)[:, None] * S + s[None, :]
    tl.store(scores + there, tl.where(seen, score, float("-inf")), mask=(r[:, None] < R) & (s[None, :] < S))


@triton.jit
def mix_rows(
    weights,  # (B, H, R, S) float32
    values,  # (B, G, C, D)
    rows,  # (B, R) int32, of 0..T-1
    mine,  # (B, R) int8
    out,  # (B, T, H, D)
    T,
    R,
    S,
    C,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What chosen rows give, into `out` where they are `mine`."""
    sample = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    line = ((sample * H + head) * R + r) * S
    base = (sample * G + head // (H // G)) * C
    acc = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for start in range(0, S, BLOCK):
        s = start + tl.arange(0, BLOCK)
        inside = (r[:, None] < R) & (s[None, :] < S)
        weight = tl.load(weights + line[:, None] + s[None, :], mask=inside, other=0.0)
        loaded = (s[:, None] < S) & (d[None, :] < D)
        value = tl.load(values + (base + s)[:, None] * D + d[None, :], mask=loaded, other=0.0)
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision="ieee")
    row = tl.load(rows + sample * R + r, mask=r < R, other=0)
    wanted = tl.load(mine + sample * R + r, mask=r < R, other=0) != 0
    there = ((sample * T + row) * H + head)[:, None] * D + d[None, :]
    tl.store(out + there, acc.to(out.dtype.element_ty), mask=wanted[:, None] & (d[None, :] < D))


@triton.jit
def keep_rows(
    scores,  # (layers, M, H, C) float32, before the softmax; after it with FINAL
    heads,  # (KH,) the heads to keep
    columns,  # (B, N) the slots to keep
    out,  # (B, layers, KH, N) float32, samples OUT apart
    begins,  # (M,) int32: the first real slot of each row
    length,  # () int32: the last one
    M,
    H,
    C,
    N,
    B,
    KH,
    K,  # rows of each sample, of which the first one is kept
    OUT,
    FINAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention weights at chosen slots; a program per layer, sample and head, which may read its scores twice."""
    at = tl.program_id(0)
    layer = (at // (KH * B)).to(tl.int64)
    sample = (at // KH % B).to(tl.int64)
    head = at % KH
    here = scores + ((layer * M + sample * K) * H + tl.load(heads + head)) * C
    begin = tl.load(begins + sample * K)
    end = tl.load(length) + 1
    s = tl.arange(0, BLOCK)
    if not FINAL:
        top = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(begin, end, BLOCK):
            score = tl.load(here + start + s, mask=start + s < end, other=float("-inf"))
            new_top = tl.maximum(top, score)
            safe = tl.where(new_top == float("-inf"), 0.0, new_top)
            total = total * tl.exp(top - safe) + tl.exp(score - safe)
            top = new_top
        highest = tl.max(top, 0)
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        whole = tl.sum(total * tl.exp(top - highest), 0)
    there = out + sample * OUT + (layer * KH + head) * N
    for start in range(0, N, BLOCK):
        n = start + s
        column = tl.load(columns + sample * N + n, mask=n < N, other=0)
        seen = (n < N) & (column >= begin) & (column < end)
        if FINAL:
            weight = tl.load(here + column, mask=seen, other=0.0)
        else:
            weight = tl.exp(tl.load(here + column, mask=seen, other=float("-inf")) - highest) / whole
        tl.store(there + n, weight, mask=n < N)
