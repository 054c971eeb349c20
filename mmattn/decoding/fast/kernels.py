"""Triton kernels of one decode step, each bound by the memory that it must read.

Shapes: M rows (samples x branches), K and N features, H query heads in G groups that share a key head, D head
dimension, C slots of the cache, P parts into which a row's keys are split. Everything a step changes lies on the
device (`length`, `positions`), so that a captured graph of these kernels serves every step.

A product reads each weight once and serves up to 64 rows from it. RMS normalisation is a gain, which whoever makes a
row multiplies in, and one factor per row, which the next product applies at its end from sums of squares that come
with the row; so no kernel passes over the hidden states for itself.
"""

# Triton reads the functions below as its own language, in which only compile-time constants are annotated.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def embed(tokens, embedding, gain, x, ready, squares, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Embeddings (M, K) of `tokens` (M,), made ready for the first normalised product."""
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK_K)
    token = tl.load(tokens + row).to(tl.int64)
    value = tl.load(embedding + token * K + k, mask=k < K, other=0.0)
    tl.store(x + row * K + k, value, mask=k < K)
    wide = value.to(tl.float32)
    scale = tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
    tl.store(ready + row * K + k, (wide * scale).to(ready.dtype.element_ty), mask=k < K)
    tl.store(squares + row, tl.sum(wide * wide))


@triton.jit
def _norm_factors(squares, m, M, PARTS, K: tl.constexpr, EPS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Reciprocal RMS of rows `m`, from the parts (PARTS, M) of their squares' sums."""
    p = tl.arange(0, BLOCK_P)
    inside = (p[:, None] < PARTS) & (m[None, :] < M)
    parts = tl.load(squares + p[:, None] * M + m[None, :], mask=inside, other=0.0)
    return tl.rsqrt(tl.sum(parts, 0) / K + EPS)


@triton.jit
def _weight_tile(weight, rows, columns, N, K: tl.constexpr, EVEN: tl.constexpr):
    places = weight + rows[:, None].to(tl.int64) * K + columns[None, :]
    if EVEN:
        return tl.load(places, mask=rows[:, None] < N, other=0.0, eviction_policy="evict_first")
    inside = (rows[:, None] < N) & (columns[None, :] < K)
    return tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _input_tile(x, rows, columns, M, K: tl.constexpr):
    inside = (rows[None, :] < M) & (columns[:, None] < K)
    return tl.load(x + rows[None, :] * K + columns[:, None], mask=inside, other=0.0)


@triton.jit
def _sums(
    x, weight, n, m, M, width, first, last, K: tl.constexpr, ONE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """The product x @ weight.T over inputs [first, last) for outputs `n`, (BLOCK_N, BLOCK_M) float32.

    A single row multiplies on the ordinary units, straight from memory to registers; more rows use the tensor cores,
    with the weights as left operand.
    """
    k = tl.arange(0, BLOCK_K)
    even: tl.constexpr = K % BLOCK_K == 0
    if ONE:
        wide = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in range(first, last, BLOCK_K):
            tile = _weight_tile(weight, n, start + k, width, K, even).to(tl.float32)
            columns = (start + k)[None, :]
            wide += tile * tl.load(x + columns, mask=columns < K, other=0.0).to(tl.float32)
        acc = tl.where(m[None, :] == 0, tl.sum(wide, 1)[:, None], 0.0)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for start in range(first, last, BLOCK_K):
            tile = _weight_tile(weight, n, start + k, width, K, even)
            acc = tl.dot(tile, _input_tile(x, m, start + k, M, K), acc, input_precision="ieee")
    return acc


@triton.jit
def product(
    x,  # (M, K)
    squares,  # (parts, M) sums of squares of the rows before their gain
    parts,
    first,  # (N0, K): up to three weights side by side, such as those of query, key and value
    second,
    third,
    first_bias,
    second_bias,
    third_bias,
    out,  # (M, N0 + N1 + N2)
    M,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    K: tl.constexpr,
    EPS: tl.constexpr,
    BIAS: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The product out = norm(x) @ weight.T (+ bias); `x` already has the gain of the norm, its factor comes last."""
    block = tl.program_id(0)
    blocks0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    blocks1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
    weight, bias, width, begin = first, first_bias, N0, 0
    if block >= blocks0 + blocks1:
        weight, bias, width, begin = third, third_bias, N2, N0 + N1
        block -= blocks0 + blocks1
    elif block >= blocks0:
        weight, bias, width, begin = second, second_bias, N1, N0
        block -= blocks0
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total: tl.constexpr = N0 + N1 + N2
    acc = _sums(x, weight, n, m, M, width, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
    acc *= _norm_factors(squares, m, M, parts, K, EPS, BLOCK_P)[None, :]
    if BIAS:
        acc += tl.load(bias + n, mask=n < width, other=0.0).to(tl.float32)[:, None]
    inside = (m[None, :] < M) & (n[:, None] < width)
    tl.store(out + m[None, :] * total + begin + n[:, None], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def product_onto(
    x,  # (M, K)
    weight,  # (N, K)
    stream,  # (M, N) the residual stream, added to in place
    gain,  # (N,) of the norm that comes next
    ready,  # (M, N) stream * gain
    squares,  # (blocks of N, M) sums of squares of the new stream
    pieces,  # (SPLIT, M, N) float32, with SPLIT > 1
    arrivals,  # (blocks,) int32, zeros
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    ONE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add x @ weight.T to the stream, and make it ready for the normalised product that follows.

    A narrow product has too few blocks of outputs to fill the device: then SPLIT programs share the inputs of one,
    and the last to arrive adds up what they found, in fixed order.
    """
    block = tl.program_id(0)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (m[None, :] < M) & (n[:, None] < N)
    places = m[None, :] * N + n[:, None]
    part = tl.program_id(2)
    size: tl.constexpr = (K + SPLIT * BLOCK_K - 1) // (SPLIT * BLOCK_K) * BLOCK_K
    first = part * size
    acc = _sums(x, weight, n, m, M, N, first, tl.minimum(first + size, K), K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
    if SPLIT > 1:
        tl.store(pieces + part * M * N + places, acc, mask=inside)
        tl.debug_barrier()
        arrival = arrivals + tl.program_id(1) * tl.num_programs(0) + block
        if tl.atomic_add(arrival, 1, sem="acq_rel") == SPLIT - 1:
            tl.store(arrival, 0)
            acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for other in tl.static_range(SPLIT):
                acc += tl.load(pieces + other * M * N + places, mask=inside, other=0.0, cache_modifier=".cg")
            _add_to_stream(acc, n, m, inside, places, stream, gain, ready, squares, block, M, N)
    else:
        _add_to_stream(acc, n, m, inside, places, stream, gain, ready, squares, block, M, N)


@triton.jit
def _add_to_stream(acc, n, m, inside, places, stream, gain, ready, squares, block, M, N: tl.constexpr):
    half = stream.dtype.element_ty
    # Rounded where the modules round, so that both ways of computing agree as closely as they can.
    new = (acc.to(half).to(tl.float32) + tl.load(stream + places, mask=inside, other=0.0).to(tl.float32)).to(half)
    tl.store(stream + places, new, mask=inside)
    wide = tl.where(inside, new.to(tl.float32), 0.0)
    scale = tl.load(gain + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(ready + places, (wide * scale[:, None]).to(half), mask=inside)
    tl.store(squares + block * M + m, tl.sum(wide * wide, 0), mask=m < M)


@triton.jit
def gated_product(
    x,  # (M, K)
    squares,  # (parts, M)
    parts,
    gate,  # (N, K)
    up,  # (N, K)
    out,  # (M, N)
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    EPS: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The MLP's inner values: silu(norm(x) @ gate.T) * (norm(x) @ up.T)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    if ONE:
        gated = _sums(x, gate, n, m, M, N, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
        raised = _sums(x, up, n, m, M, N, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
    else:
        k = tl.arange(0, BLOCK_K)
        gated = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        raised = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for start in range(0, K, BLOCK_K):
            gate_tile = _weight_tile(gate, n, start + k, N, K, K % BLOCK_K == 0)
            up_tile = _weight_tile(up, n, start + k, N, K, K % BLOCK_K == 0)
            rows = _input_tile(x, m, start + k, M, K)
            gated = tl.dot(gate_tile, rows, gated, input_precision="ieee")
            raised = tl.dot(up_tile, rows, raised, input_precision="ieee")
    factor = _norm_factors(squares, m, M, parts, K, EPS, BLOCK_P)[None, :]
    half = out.dtype.element_ty
    gated = (gated * factor).to(half).to(tl.float32)
    raised = (raised * factor).to(half).to(tl.float32)
    value = (gated * tl.sigmoid(gated)).to(half).to(tl.float32) * raised
    inside = (m[None, :] < M) & (n[:, None] < N)
    tl.store(out + m[None, :] * N + n[:, None], value.to(half), mask=inside)


@triton.jit
def rotate_and_store(
    qkv,  # (M, (H + 2 G) D): query (rewritten in place), key, value
    cosines,  # (positions, D)
    sines,
    query_gain,  # (D,) with QK_NORM
    key_gain,
    keys,  # (M / T, G, C, D)
    values,
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
    BLOCK_D: tl.constexpr,  # at least D / 2
    BLOCK_M: tl.constexpr,
):
    """Rotary embedding of query and key, and new keys and values into the cache; a program per rows and head."""
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
        else:
            there = keys + ((sequence * G + head - H) * C + slot)[:, None] * D + d
            tl.store(there, new_low.to(keys.dtype.element_ty), mask=inside)
            tl.store(there + half, new_high.to(keys.dtype.element_ty), mask=inside)


@triton.jit
def _span(begins, length, row, part, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The slots [begin, end) of one part of a row's keys; padding before `begins` is not touched."""
    begin = tl.load(begins + row)
    end = tl.load(length) + 1
    size = tl.cdiv(tl.cdiv(end - begin, PARTS), BLOCK) * BLOCK
    first = begin + part * size
    return first, tl.minimum(first + size, end)


@triton.jit
def attention(
    qkv,  # (M, (H + 2 G) D), query rotated
    keys,  # (M, G, C, D)
    values,
    hidden,  # (M, C) int8, 1 on slots that the row must not see; with HIDES
    scores,  # (M, H, C) float32, filled with WRITE; read as weights with READ
    part_out,  # (M, H, P, D) float32
    part_max,  # (M, H, P) float32
    part_sum,
    out,  # (M, H D), written where P = 1
    begins,  # (M,) int32: the first real slot of each row
    length,  # () int32: the last slot to be read
    owners,  # (M,) int32: whose keys and values a row reads, with OWNED; else its own
    scale,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    C,
    PARTS: tl.constexpr,
    HIDES: tl.constexpr,
    WRITE: tl.constexpr,
    READ: tl.constexpr,
    MIX: tl.constexpr,
    OWNED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One query per row against its cache, in parts.

    Plainly (MIX): softmax and values in one pass; with WRITE the scores (before the softmax) are kept. WRITE alone
    computes scores only. READ and MIX take the weights from `scores` instead and only mix values.
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
    query = tl.load(
        qkv + row * (H + 2 * G) * D + heads[:, None] * D + d[None, :],
        mask=mine[:, None] & (d[None, :] < D),
        other=0.0,
    )
    owner = row
    if OWNED:
        owner = tl.load(owners + row)
    base = (owner * G + group).to(tl.int64) * C
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for start in range(first, last, BLOCK):
        slots = start + s
        there = slots < last
        places = (base + slots)[:, None] * D + d[None, :]
        loaded = there[:, None] & (d[None, :] < D)
        kept = scores + (row * H + heads[:, None]).to(tl.int64) * C + slots[None, :]
        if READ:
            weight = tl.load(kept, mask=mine[:, None] & there[None, :], other=0.0)
        else:
            key = tl.load(keys + places, mask=loaded, other=0.0)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            seen = there
            if HIDES:
                seen &= tl.load(hidden + row * C + slots, mask=there, other=1) == 0
            score = tl.where(seen[None, :], score, float("-inf"))
            if WRITE:
                tl.store(kept, score, mask=mine[:, None] & there[None, :])
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
    if MIX:
        inside = mine[:, None] & (d[None, :] < D)
        if PARTS == 1:
            if not READ:
                acc = acc / total[:, None]
            places = out + row * H * D + heads[:, None] * D + d[None, :]
            tl.store(places, acc.to(out.dtype.element_ty), mask=inside)
        else:
            at = (row * H + heads) * PARTS + part
            tl.store(part_out + at[:, None] * D + d[None, :], acc, mask=inside)
            if not READ:
                tl.store(part_max + at, top, mask=mine)
                tl.store(part_sum + at, total, mask=mine)


@triton.jit
def join_parts(
    part_out,  # (M, H, P, D) float32
    part_max,  # (M, H, P)
    part_sum,
    out,  # (M, H D)
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    READ: tl.constexpr,
):
    """The parts of one row and head into its output; with READ they only add up."""
    at = tl.program_id(0)
    p = tl.arange(0, BLOCK_P)
    d = tl.arange(0, BLOCK_D)
    inside = (p[:, None] < PARTS) & (d[None, :] < D)
    acc = tl.load(part_out + (at * PARTS + p[:, None]) * D + d[None, :], mask=inside, other=0.0)
    if READ:
        value = tl.sum(acc, 0)
    else:
        top = tl.load(part_max + at * PARTS + p, mask=p < PARTS, other=float("-inf"))
        scale = tl.exp(top - tl.max(top, 0))
        total = tl.sum(tl.load(part_sum + at * PARTS + p, mask=p < PARTS, other=0.0) * scale, 0)
        value = tl.sum(acc * scale[:, None], 0) / total
    tl.store(out + at * D + d, value.to(out.dtype.element_ty), mask=d < D)


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
    """What chosen rows give, into `out` where they are `mine`; those that see nothing, so that their weights are no
    numbers, keep what is there.
    """
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
    tl.store(out + there, acc.to(out.dtype.element_ty), mask=wanted[:, None] & (d[None, :] < D) & (acc == acc))


@triton.jit
def keep_rows(
    scores,  # (layers, M, H, C) float32, before the softmax; after it in layers that are `final`
    final,  # (layers,) int8
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
    BLOCK: tl.constexpr,
):
    """Attention weights at chosen slots; a program per layer, sample and head, which reads its scores twice."""
    at = tl.program_id(0)
    layer = (at // (KH * B)).to(tl.int64)
    sample = (at // KH % B).to(tl.int64)
    head = at % KH
    here = scores + ((layer * M + sample * K) * H + tl.load(heads + head)) * C
    begin = tl.load(begins + sample * K)
    end = tl.load(length) + 1
    s = tl.arange(0, BLOCK)
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
    done = tl.load(final + layer) != 0
    there = out + sample * OUT + (layer * KH + head) * N
    for start in range(0, N, BLOCK):
        n = start + s
        column = tl.load(columns + sample * N + n, mask=n < N, other=0)
        seen = (n < N) & (column >= begin) & (column < end)
        score = tl.load(here + column, mask=seen, other=float("-inf"))
        weight = tl.where(done, tl.where(seen, score, 0.0), tl.exp(score - highest) / whole)
        tl.store(there + n, weight, mask=n < N)
