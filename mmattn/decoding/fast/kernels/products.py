"""Products of a decode step, each bound by the weights that it must read.

A product reads each weight once and serves up to 64 rows from it. RMS normalisation is a gain, which whoever makes a
row multiplies in, and one factor per row, which the next product applies at its end from sums of squares that come
with the row; so no kernel passes over the hidden states for itself.

A single row reads its input and weights by their places in memory. With several, they come as descriptors, of which
the device's copy engine brings tiles (BLOCK_M, BLOCK_K) and (BLOCK_N, BLOCK_K): without threads that work out places,
more of them are on their way.

What the end of a product needs beyond its sums is asked for at the beginning with EARLY: at once, where it is older
than the kernel before this one, and else after waiting for that. A single row has programs in plenty, whose ends do not
hold each other up.

Shapes: M rows (samples x branches), K and N features.
"""

# Triton reads the functions below as its own language, in which only compile-time constants are annotated.
from __future__ import annotations

import triton
import triton.language as tl

from mmattn.decoding.fast.kernels.overlap import await_earlier, let_next_in


@triton.jit
def embed(tokens, embedding, gain, x, ready, squares, K: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr):
    """Embeddings (M, K) of `tokens` (M,), made ready for the first normalised product."""
    await_earlier(OVERLAP)
    let_next_in(OVERLAP)
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
def _rotation(cosines, sines, positions, m, d, inside, M, D: tl.constexpr):
    """Cosines and sines (half a head's dimensions `d`, rows `m`) of a head's lower half, then of its upper one."""
    at = tl.load(positions + m, mask=m < M, other=0, cache_modifier=".cg")[None, :] * D + d[:, None]
    cosine = tl.load(cosines + at, mask=inside, other=0.0)
    sine = tl.load(sines + at, mask=inside, other=0.0)
    at += D // 2
    return cosine, sine, tl.load(cosines + at, mask=inside, other=0.0), tl.load(sines + at, mask=inside, other=0.0)


@triton.jit
def _parts_of_squares(squares, m, M, PARTS, BLOCK_P: tl.constexpr):
    """Of rows `m`, the parts (PARTS, M) of their squares' sums."""
    p = tl.arange(0, BLOCK_P)
    inside = (p[:, None] < PARTS) & (m[None, :] < M)
    return tl.load(squares + p[:, None] * M + m[None, :], mask=inside, other=0.0)


@triton.jit
def _norm_factors(parts, K: tl.constexpr, EPS: tl.constexpr):
    """Reciprocal RMS of rows, from the parts of their squares' sums."""
    return tl.rsqrt(tl.sum(parts, 0) / K + EPS)


@triton.jit
def _weight_tile(weight, rows, columns, N, K: tl.constexpr, EVEN: tl.constexpr):
    places = weight + rows[:, None].to(tl.int64) * K + columns[None, :]
    if EVEN:
        return tl.load(places, mask=rows[:, None] < N, other=0.0, eviction_policy="evict_first")
    inside = (rows[:, None] < N) & (columns[None, :] < K)
    return tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _sums(
    x, weight, block, n, width, first, last, K: tl.constexpr, ONE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PER_HEAD: tl.constexpr = 1
):  # fmt: skip
    """The product x @ weight.T over inputs [first, last), (BLOCK_N, BLOCK_M) float32.

    A single row multiplies on the ordinary units, straight from memory to registers, for outputs `n`. More rows use
    the tensor cores, with the weights as left operand, for the outputs of `block`. Beyond an edge, tiles hold zeros.
    Where a head has PER_HEAD blocks, `weight` is (heads, 2, D / 2, K), and a block has as many outputs of each half.
    """
    if ONE:
        k = tl.arange(0, BLOCK_K)
        wide = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in range(first, last, BLOCK_K):
            tile = _weight_tile(weight, n, start + k, width, K, K % BLOCK_K == 0).to(tl.float32)
            columns = (start + k)[None, :]
            wide += tile * tl.load(x + columns, mask=columns < K, other=0.0).to(tl.float32)
        acc = tl.sum(wide, 1)[:, None]
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for start in range(first, last, BLOCK_K):
            if PER_HEAD > 1:
                inner = block % PER_HEAD * (BLOCK_N // 2)
                tile = weight.load([block // PER_HEAD, 0, inner, start]).reshape(BLOCK_N, BLOCK_K)
            else:
                tile = weight.load([block * BLOCK_N, start])
            rows = x.load([tl.program_id(1) * BLOCK_M, start])
            acc = tl.dot(tile, rows.T, acc, input_precision="ieee")
    return acc


@triton.jit
def product(
    x,  # (M, K)
    squares,  # (parts, M) sums of squares of the rows before their gain
    parts,
    weight,  # (N, K)
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
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The product out = norm(x) @ weight.T; `x` already has the gain of the norm, its factor comes last."""
    await_earlier(OVERLAP)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    if EARLY:
        of_squares = _parts_of_squares(squares, m, M, parts, BLOCK_P)
    acc = _sums(x, weight, tl.program_id(0), n, N, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
    let_next_in(OVERLAP)
    if not EARLY:
        of_squares = _parts_of_squares(squares, m, M, parts, BLOCK_P)
    acc *= _norm_factors(of_squares, K, EPS)[None, :]
    tl.store(out + m[None, :] * N + n[:, None], acc.to(out.dtype.element_ty), mask=(m[None, :] < M) & (n[:, None] < N))


@triton.jit
def project(  # noqa: C901 - its branches are settled when it is compiled
    x,  # (M, K)
    squares,  # (parts, M)
    parts,
    first,  # (H D, K): the weights of query, key and value
    second,  # (G D, K)
    third,
    first_bias,
    second_bias,
    third_bias,
    out,  # (M, (H + 2 G) D)
    keys,  # (M, G, C, D)
    values,
    positions,  # (M,) int32
    cosines,  # (positions, D)
    sines,
    length,  # () int32: where the new token goes
    M,
    C,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    EPS: tl.constexpr,
    BIAS: tl.constexpr,
    ROTATE: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Query, key and value: norm(x) @ weight.T (+ bias) into `out`.

    With ROTATE the query is rotated there, and the rotated key and the value go into the cache instead. A block then
    has as many outputs of a head's lower half as of its upper one, which rotation mixes; D is a multiple of BLOCK_N.
    """
    block = tl.program_id(0)
    blocks: tl.constexpr = (H * D + BLOCK_N - 1) // BLOCK_N
    fewer: tl.constexpr = (G * D + BLOCK_N - 1) // BLOCK_N
    weight, bias, width, begin = first, first_bias, H * D, 0
    target, apart, between, slot = out, (H + 2 * G) * D, D, 0
    turns = block < blocks + fewer
    if block >= blocks:
        target, between, slot = keys, C * D, tl.load(length, cache_modifier=".cg")
        apart = G * between
        weight, bias, width, begin = second, second_bias, G * D, H * D
        if block >= blocks + fewer:
            target, weight, bias, begin = values, third, third_bias, (H + G) * D
            block -= fewer
        block -= blocks
    i = tl.arange(0, BLOCK_N)
    n = block * BLOCK_N + i
    if ROTATE:
        half: tl.constexpr = BLOCK_N // 2
        inner = block % (D // BLOCK_N) * half
        n = block // (D // BLOCK_N) * D + i // half * (D // 2) + inner + i % half
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    per_head: tl.constexpr = D // BLOCK_N if ROTATE else 1
    if ROTATE:
        d = inner + tl.arange(0, half)
        inside = (m < M)[None, :] & (d[:, None] < D // 2)
    if EARLY:
        if BIAS:
            added = tl.load(bias + n, mask=n < width, other=0.0)
        if ROTATE:
            turn = _rotation(cosines, sines, positions, m, d, inside & turns, M, D)
    await_earlier(OVERLAP)
    if EARLY:
        of_squares = _parts_of_squares(squares, m, M, parts, BLOCK_P)
    acc = _sums(x, weight, block, n, width, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K, per_head)
    let_next_in(OVERLAP)
    if not EARLY:
        of_squares = _parts_of_squares(squares, m, M, parts, BLOCK_P)
        if BIAS:
            added = tl.load(bias + n, mask=n < width, other=0.0)
        if ROTATE:
            turn = _rotation(cosines, sines, positions, m, d, inside & turns, M, D)
    acc *= _norm_factors(of_squares, K, EPS)[None, :]
    if BIAS:
        acc += added.to(tl.float32)[:, None]
    done = acc.to(out.dtype.element_ty)
    if ROTATE:
        pairs = tl.permute(tl.reshape(done.to(tl.float32), (2, half, BLOCK_M)), (1, 2, 0))
        low, high = tl.split(pairs)
        if turns:
            new = low * turn[0].to(tl.float32) - high * turn[1].to(tl.float32)
            high = high * turn[2].to(tl.float32) + low * turn[3].to(tl.float32)
            low = new
        head = block // (D // BLOCK_N)
        there = m[None, :].to(tl.int64) * apart + head * between + slot * D + d[:, None]
        tl.store(target + there, low.to(done.dtype), mask=inside)
        tl.store(target + there + D // 2, high.to(done.dtype), mask=inside)
    else:
        inside = (m[None, :] < M) & (n[:, None] < width)
        tl.store(out + m[None, :] * ((H + 2 * G) * D) + begin + n[:, None], done, mask=inside)


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
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
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
    if EARLY:
        old = tl.load(stream + places, mask=inside, other=0.0, cache_modifier=".cg")
        scale = tl.load(gain + n, mask=n < N, other=0.0)
    await_earlier(OVERLAP)
    acc = _sums(x, weight, block, n, N, first, tl.minimum(first + size, K), K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
    let_next_in(OVERLAP)
    if not EARLY:
        old = tl.load(stream + places, mask=inside, other=0.0, cache_modifier=".cg")
        scale = tl.load(gain + n, mask=n < N, other=0.0)
    if SPLIT > 1:
        tl.store(pieces + part * M * N + places, acc, mask=inside)
        tl.debug_barrier()
        arrival = arrivals + tl.program_id(1) * tl.num_programs(0) + block
        if tl.atomic_add(arrival, 1, sem="acq_rel") == SPLIT - 1:
            tl.store(arrival, 0)
            acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for other in tl.static_range(SPLIT):
                acc += tl.load(pieces + other * M * N + places, mask=inside, other=0.0, cache_modifier=".cg")
            _add_to_stream(acc, old, scale, m, inside, places, stream, ready, squares, block, M)
    else:
        _add_to_stream(acc, old, scale, m, inside, places, stream, ready, squares, block, M)


@triton.jit
def _add_to_stream(acc, old, scale, m, inside, places, stream, ready, squares, block, M):
    half = stream.dtype.element_ty
    # Rounded where the modules round, so that both ways of computing agree as closely as they can.
    new = (acc.to(half).to(tl.float32) + old.to(tl.float32)).to(half)
    tl.store(stream + places, new, mask=inside)
    wide = tl.where(inside, new.to(tl.float32), 0.0)
    tl.store(ready + places, (wide * scale.to(tl.float32)[:, None]).to(half), mask=inside)
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
    EARLY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The MLP's inner values: silu(norm(x) @ gate.T) * (norm(x) @ up.T)."""
    await_earlier(OVERLAP)
    block = tl.program_id(0)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    if EARLY:
        of_squares = _parts_of_squares(squares, m, M, parts, BLOCK_P)
    if ONE:
        gated = _sums(x, gate, block, n, N, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
        raised = _sums(x, up, block, n, N, 0, K, K, ONE, BLOCK_N, BLOCK_M, BLOCK_K)
    else:
        gated = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        raised = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for start in range(0, K, BLOCK_K):
            rows = x.load([tl.program_id(1) * BLOCK_M, start])
            gate_tile = gate.load([block * BLOCK_N, start])
            up_tile = up.load([block * BLOCK_N, start])
            gated = tl.dot(gate_tile, rows.T, gated, input_precision="ieee")
            raised = tl.dot(up_tile, rows.T, raised, input_precision="ieee")
    let_next_in(OVERLAP)
    if not EARLY:
        of_squares = _parts_of_squares(squares, m, M, parts, BLOCK_P)
    factor = _norm_factors(of_squares, K, EPS)[None, :]
    half = out.dtype.element_ty
    gated = (gated * factor).to(half).to(tl.float32)
    raised = (raised * factor).to(half).to(tl.float32)
    value = (gated * tl.sigmoid(gated)).to(half).to(tl.float32) * raised
    inside = (m[None, :] < M) & (n[:, None] < N)
    tl.store(out + m[None, :] * N + n[:, None], value.to(half), mask=inside)
