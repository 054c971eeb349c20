"""The best token of each sample, and what a batch has generated so far.

Shapes: B samples of K rows each, V vocabulary, P parts into which it is split, S steps.
"""

# Triton reads the functions below as its own language, in which only compile-time constants are annotated.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def best_of_part(
    scores,  # (B, V) float32, samples APART apart
    best,  # (B, P) float32: the highest score of a part, or a NaN where there is one
    place,  # (B, P) int32: the first token that has it
    APART,
    V,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program per sample and part."""
    sample, part = tl.program_id(0), tl.program_id(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + sample.to(tl.int64) * APART + token, mask=token < V, other=float("-inf"))
    broken = tl.max((score != score).to(tl.int32), 0)
    score = tl.where(score != score, float("-inf"), score)
    top = tl.max(score, 0)
    at = sample * PARTS + part
    tl.store(place + at, tl.min(tl.where(score == top, token, V), 0))
    tl.store(best + at, tl.where(broken != 0, float("nan"), top))


@triton.jit
def take_best(
    best,  # (B, P)
    place,
    tokens,  # (B, S) int64
    following,  # (B K,) int64: the rows' next tokens
    stopped,  # (B,) int8: whether a sample has ended
    finished,  # () int8: whether all have
    broken,  # () int8: set where a sample that has not has no best token
    rooms,  # (B,) int64: tokens that a sample may generate
    step,  # (1,) int64
    stop_ids,  # (STOPS,) int64
    filler,  # () int64
    B,
    S,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The next token of each sample, and one step on; one program does all."""
    p = tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_K)
    number = tl.load(step)
    blank = tl.load(filler)
    nowhere: tl.constexpr = 2147483647
    going, wrong = 0, 0
    for first in range(0, B, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        there = b < B
        inside = there[:, None] & (p < PARTS)[None, :]
        at = b[:, None] * PARTS + p[None, :]
        value = tl.load(best + at, mask=inside, other=float("-inf"))
        token = tl.load(place + at, mask=inside, other=nowhere)
        odd = tl.max((value != value).to(tl.int32), 1) != 0
        # A token there must be, whatever it is: the rows read it before the host hears of what is broken.
        value = tl.where(value != value, float("-inf"), value)
        top = tl.max(value, 1)
        ended = tl.load(stopped + b, mask=there, other=1) != 0
        wrong = tl.maximum(wrong, tl.max(((odd | (top == float("-inf"))) & (ended == 0)).to(tl.int32), 0))
        chosen = tl.min(tl.where(value == top[:, None], token, nowhere), 1).to(tl.int64)
        chosen = tl.where(ended, blank, chosen)
        tl.store(tokens + b * S + number, chosen, mask=there)
        tl.store(
            following + b[:, None] * K + k[None, :],
            tl.broadcast_to(chosen[:, None], (BLOCK_B, BLOCK_K)),
            mask=there[:, None] & (k < K)[None, :],
        )
        for stop in tl.static_range(STOPS):
            ended |= chosen == tl.load(stop_ids + stop)
        ended |= tl.load(rooms + b, mask=there, other=0) <= number + 1
        tl.debug_barrier()  # all have read whether a sample had ended
        tl.store(stopped + b, ended.to(tl.int8), mask=there)
        going = tl.maximum(going, tl.max(((ended == 0) & there).to(tl.int32), 0))
    tl.debug_barrier()  # all have read which step it is
    tl.store(step, number + 1)
    tl.store(finished, (going == 0).to(tl.int8))
    if wrong != 0:
        tl.store(broken, tl.full((), 1, tl.int8))
