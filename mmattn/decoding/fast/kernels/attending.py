"""Attention over a cache in place: new keys and values into it, and one query per row against it.

Shapes: M rows (samples x branches), H query heads in G groups that share a key head, D head dimension, C slots of the
cache, P parts into which a row's keys are split. Of attention that is kept: B samples, of whose K rows the first one
counts, N slots that follow each other, and some of the heads.
"""

# Triton reads the functions below as its own language, in which only compile-time constants are annotated.
from __future__ import annotations

import triton
import triton.language as tl

from mmattn.decoding.fast.kernels.overlap import await_earlier, let_next_in


@triton.jit
def rotate_and_store(
    qkv,  # (M, (H + 2 G) D): query (rewritten in place), key, value
    cosines,  # (positions, D)
    sines,
    query_gain,  # (D,) with QK_NORM
    key_gain,
    keys,  # (M / T, G, C, D)
    values,
    last,  # (M / T, (H + 2 G) D), with LAST: gets the query of each sequence's last token
    ends,  # (M / T,), with LAST: which row that token is
    positions,  # (M,) int32
    length,  # () int32: where the first new token goes
    M,
    T,  # new tokens of each sequence, which follow each other as rows
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    C,
    EPS: tl.constexpr,
    QK_NORM: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_D: tl.constexpr,  # at least D / 2
    BLOCK_M: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Rotary embedding of query and key, and new keys and values into the cache; a program per rows and head."""
    await_earlier(OVERLAP)
    let_next_in(OVERLAP)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1)
    half: tl.constexpr = D // 2
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (d < half) & (row[:, None] < M)
    here = qkv + row[:, None].to(tl.int64) * (H + 2 * G) * D + head * D + d
    low = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(here + half, mask=inside, other=0.0).to(tl.float32)
    sequence = (row // T).to(tl.int64)
    slot = tl.load(length) + row % T
    if head >= H + G:
        there = values + ((sequence * G + head - H - G) * C + slot)[:, None] * D + d
        tl.store(there, low.to(values.dtype.element_ty), mask=inside)
        tl.store(there + half, high.to(values.dtype.element_ty), mask=inside)
    else:
        if QK_NORM:
            factor = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / D + EPS)[:, None]
            gain = query_gain
            if head >= H:
                gain = key_gain
            low *= factor * tl.load(gain + d, mask=d < half, other=0.0).to(tl.float32)
            high *= factor * tl.load(gain + half + d, mask=d < half, other=0.0).to(tl.float32)
        at = tl.load(positions + row, mask=row < M, other=0)[:, None] * D + d
        new_low = low * tl.load(cosines + at, mask=inside, other=0.0).to(tl.float32)
        new_low -= high * tl.load(sines + at, mask=inside, other=0.0).to(tl.float32)
        new_high = high * tl.load(cosines + at + half, mask=inside, other=0.0).to(tl.float32)
        new_high += low * tl.load(sines + at + half, mask=inside, other=0.0).to(tl.float32)
        if head < H:
            tl.store(here, new_low.to(qkv.dtype.element_ty), mask=inside)
            tl.store(here + half, new_high.to(qkv.dtype.element_ty), mask=inside)
            if LAST:
                there = last + sequence[:, None] * ((H + 2 * G) * D) + head * D + d
                wanted = inside & (row == tl.load(ends + sequence, mask=row < M, other=-1))[:, None]
                tl.store(there, new_low.to(last.dtype.element_ty), mask=wanted)
                tl.store(there + half, new_high.to(last.dtype.element_ty), mask=wanted)
        else:
            there = keys + ((sequence * G + head - H) * C + slot)[:, None] * D + d
            tl.store(there, new_low.to(keys.dtype.element_ty), mask=inside)
            tl.store(there + half, new_high.to(keys.dtype.element_ty), mask=inside)


@triton.jit
def _span(begins, length, row, part, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The slots [begin, end) of one part of a row's keys; padding before `begins` is not touched."""
    begin = tl.load(begins + row)
    end = tl.load(length, cache_modifier=".cg") + 1
    size = tl.cdiv(tl.cdiv(end - begin, PARTS), BLOCK) * BLOCK
    first = begin + part * size
    return first, tl.minimum(first + size, end)


@triton.jit
def _normalise(row, top, total, N, BLOCK: tl.constexpr):
    """Scores (N,) at `row`, which this program or an earlier kernel left there, into weights."""
    n = tl.arange(0, BLOCK)
    for start in range(0, N, BLOCK):
        here = row + start + n
        inside = start + n < N
        score = tl.load(here, mask=inside, other=float("-inf"), cache_modifier=".cg")
        tl.store(here, tl.exp(score - top) / total, mask=inside)


@triton.jit
def _only(values, which):
    """The one of `values` that `which` names."""
    return tl.sum(tl.where(which, values, 0), 0)


@triton.jit
def _finish(kept, place, top, total, N, SHARE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr):
    """`_normalise` for each head of a group that is kept: at `place`, by maximum `top` and sum `total` (BLOCK_H,)."""
    h = tl.arange(0, BLOCK_H)
    tl.debug_barrier()  # other threads stored some of the scores
    for head in tl.static_range(SHARE):
        here = _only(place, h == head)
        if here >= 0:
            _normalise(kept + here * N, _only(top, h == head), _only(total, h == head), N, BLOCK)


@triton.jit
def attention(  # noqa: C901 - its branches are settled when it is compiled
    qkv,  # (M, (H + 2 G) D), query rotated
    keys,  # (M, G, C, D)
    values,
    hidden,  # (M, C) int8, 1 on slots that the row must not see; with HIDES
    scores,  # (M, H, C) float32, filled with WRITE; read as weights with READ
    kept,  # (B, heads that are kept, N) float32, samples APART apart, with KEEP
    starts,  # (B,) int32: the first slot that is kept
    place_of,  # (H,) int32: a head's place among those that are kept; below 0 for none
    part_out,  # (M, H, P, D) float32
    part_max,  # (M, H, P) float32
    part_sum,
    out,  # (M, H D), written where P = 1
    begins,  # (M,) int32: the first real slot of each row
    length,  # () int32: the last slot to be read
    owners,  # (M,) int32: whose keys and values a row reads, with OWNED; else its own
    scale,
    K,  # rows of a sample, slots that are kept, and how far samples are apart in `kept`
    N,
    APART,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    C,
    PARTS: tl.constexpr,
    HIDES: tl.constexpr,
    KEEP: tl.constexpr,
    WRITE: tl.constexpr,
    READ: tl.constexpr,
    MIX: tl.constexpr,
    OWNED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """One query per row against its cache, in parts.

    Plainly (MIX): softmax and values in one pass. With KEEP the wanted weights are left, too; where there are several
    parts, as scores, which `join_parts` finishes. A head that has its key head alone holds its scores in TILES x BLOCK
    registers until it has seen all: a row that is written at once costs the memory a third of one that comes in
    pieces. WRITE computes scores only. READ and MIX take the weights from
    `scores` instead and only mix values.
    """
    row = tl.program_id(0)
    group = tl.program_id(1)
    part = tl.program_id(2)
    share: tl.constexpr = H // G
    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK)
    mine = h < share
    heads = group * share + h
    first, last = _span(begins, length, row, part, PARTS, BLOCK)
    await_earlier(OVERLAP)
    query = tl.load(
        qkv + row * (H + 2 * G) * D + heads[:, None] * D + d[None, :],
        mask=mine[:, None] & (d[None, :] < D),
        other=0.0,
    )
    owner = row
    if OWNED:
        owner = tl.load(owners + row)
    base = (owner * G + group).to(tl.int64) * C
    if KEEP:
        kept += (row // K).to(tl.int64) * APART
        begin = tl.load(starts + row // K)
        place = tl.load(place_of + heads, mask=mine & (row % K == 0), other=-1)
        if TILES:
            t = tl.arange(0, TILES)[:, None]
            held = tl.zeros((TILES, BLOCK), tl.float32)
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for start in range(first, last, BLOCK):
        slots = start + s
        there = slots < last
        places = (base + slots)[:, None] * D + d[None, :]
        loaded = there[:, None] & (d[None, :] < D)
        at = scores + (row * H + heads[:, None]).to(tl.int64) * C + slots[None, :]
        if READ:
            weight = tl.load(at, mask=mine[:, None] & there[None, :], other=0.0)
        else:
            key = tl.load(keys + places, mask=loaded, other=0.0)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            seen = there
            if HIDES:
                seen &= tl.load(hidden + row * C + slots, mask=there, other=1) == 0
            score = tl.where(seen[None, :], score, float("-inf"))
            if WRITE:
                tl.store(at, score, mask=mine[:, None] & there[None, :])
            if KEEP:
                if TILES:
                    alone = tl.sum(tl.where(h[:, None] == 0, score, 0.0), 0)
                    held = tl.where(t == (start - first) // BLOCK, alone[None, :], held)
                else:
                    n = slots - begin
                    wanted = (place >= 0)[:, None] & (there & (n >= 0) & (n < N))[None, :]
                    tl.store(kept + place[:, None] * N + n[None, :], score, mask=wanted)
            if MIX:
                new_top = tl.maximum(top, tl.max(score, 1))
                # A part that sees nothing yet has no maximum to subtract.
                safe = tl.where(new_top == float("-inf"), 0.0, new_top)
                weight = tl.exp(score - safe[:, None])
                shrink = tl.exp(top - safe)
                total = total * shrink + tl.sum(weight, 1)
                acc *= shrink[:, None]
                top = new_top
        if MIX:
            value = tl.load(values + places, mask=loaded, other=0.0)
            acc = tl.dot(weight.to(value.dtype), value, acc, input_precision="ieee")
    let_next_in(OVERLAP)
    if MIX:
        inside = mine[:, None] & (d[None, :] < D)
        if PARTS == 1:
            if not READ:
                acc = acc / total[:, None]
            places = out + row * H * D + heads[:, None] * D + d[None, :]
            tl.store(places, acc.to(out.dtype.element_ty), mask=inside)
            if KEEP and not TILES:
                _finish(kept, place, top, total, N, share, BLOCK_H, BLOCK_N)
        else:
            at = (row * H + heads) * PARTS + part
            tl.store(part_out + at[:, None] * D + d[None, :], acc, mask=inside)
            if not READ:
                tl.store(part_max + at, top, mask=mine)
                tl.store(part_sum + at, total, mask=mine)
        if KEEP and TILES:
            if PARTS == 1:
                held = tl.exp(held - _only(top, h == 0)) / _only(total, h == 0)
            n = first - begin + t * BLOCK + s[None, :]
            here = _only(place, h == 0)
            wanted = (here >= 0) & (n < last - begin) & (n >= 0) & (n < N)
            tl.store(kept + here * N + n, held, mask=wanted)


@triton.jit
def join_parts(
    part_out,  # (M, H, P, D) float32
    part_max,  # (M, H, P)
    part_sum,
    out,  # (M, H D)
    kept,  # as in `attention`
    place_of,
    K,
    N,
    APART,
    H: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    KEEP: tl.constexpr,
    READ: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The parts of one row and head into its output, and what is kept of it into weights; with READ they only add
    up.
    """
    await_earlier(OVERLAP)
    let_next_in(OVERLAP)
    at = tl.program_id(0)
    p = tl.arange(0, BLOCK_P)
    d = tl.arange(0, BLOCK_D)
    inside = (p[:, None] < PARTS) & (d[None, :] < D)
    acc = tl.load(part_out + (at * PARTS + p[:, None]) * D + d[None, :], mask=inside, other=0.0)
    if READ:
        value = tl.sum(acc, 0)
    else:
        top = tl.load(part_max + at * PARTS + p, mask=p < PARTS, other=float("-inf"))
        peak = tl.max(top, 0)
        scale = tl.exp(top - peak)
        total = tl.sum(tl.load(part_sum + at * PARTS + p, mask=p < PARTS, other=0.0) * scale, 0)
        value = tl.sum(acc * scale[:, None], 0) / total
        if KEEP:
            row = at // H
            place = tl.load(place_of + at % H)
            if (row % K == 0) & (place >= 0):
                _normalise(kept + (row // K).to(tl.int64) * APART + place * N, peak, total, N, BLOCK_N)
    tl.store(out + at * D + d, value.to(out.dtype.element_ty), mask=d < D)
