"""Greedy choice of the next tokens in two kernels, where tensor operations would be more than a dozen."""

from __future__ import annotations

import torch
import triton

from mmattn.decoding.fast import kernels
from mmattn.decoding.progress import Progress

# Scores of a part, and samples that are looked at together.
PART, TOGETHER = 1024, 16


class Greedy:
    """Does to a batch's `Progress` what its `take` does, when nothing is drawn at random."""

    def __init__(self, progress: Progress, vocabulary: int) -> None:
        samples = len(progress.tokens)
        self._progress, self._parts = progress, triton.cdiv(vocabulary, PART)
        self._best = torch.empty(samples, self._parts, device=progress.tokens.device)
        self._place = torch.empty_like(self._best, dtype=torch.int32)

    def take(self, scores: torch.Tensor, following: torch.Tensor) -> None:
        """Choose from `scores` (B, V), and write the tokens to `following` (B K,), the rows' next ones."""
        one, parts = self._progress, self._parts
        samples, steps = one.tokens.shape
        scores = scores.float()
        if scores.stride(1) != 1:
            scores = scores.contiguous()
        kernels.best_of_part[(samples, parts)](
            scores, self._best, self._place, scores.stride(0), scores.shape[1], PARTS=parts, BLOCK=PART, num_warps=4
        )
        rows, flags = len(following) // samples, (one.stopped, one.finished, one.broken)
        kernels.take_best[(1,)](
            self._best, self._place, one.tokens, following, *(flag.view(torch.int8) for flag in flags), one.rooms,
            one.step, one.stop_ids, one.filler, samples, steps, K=rows, PARTS=parts, STOPS=len(one.stop_ids),
            BLOCK_B=min(TOGETHER, triton.next_power_of_2(samples)), BLOCK_P=triton.next_power_of_2(parts),
            BLOCK_K=triton.next_power_of_2(rows), num_warps=8,
        )  # fmt: skip
