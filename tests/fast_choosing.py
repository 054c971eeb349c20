"""Run by `fast_step.py`: the kernels that choose tokens against the tensor operations that they stand for."""

from __future__ import annotations

import torch

from mmattn.decoding.fast.choosing import Greedy
from mmattn.decoding.method import Method
from mmattn.decoding.progress import Progress
from mmattn.decoding.sampling import Sampling

# Samples, vocabulary and tokens that end an answer; of one part, a whole one, and several.
CASES = ((19, 1100, (7,)), (1, 50, ()), (5, 1024, (7, 5, 31)), (2, 2500, (5, 7)))
STEPS = 7


def choices(device: str) -> None:
    """Answers of several lengths and ends, from scores with ties, forbidden tokens, none that is left, and NaN."""
    live, parts = dict.fromkeys(range(STEPS), 0), set()
    for samples, vocabulary, stops in CASES:
        generator = torch.Generator().manual_seed(samples + vocabulary)
        one, other = (Progress(samples, 8, Method(), Sampling(), stops, 3, torch.device(device)) for _ in range(2))
        rooms = torch.randint(0, STEPS, (samples,), generator=generator)
        rooms[-1] = rooms[samples // 2] = 8
        for progress in (one, other):
            progress.start(rooms.tolist(), torch.zeros(samples, 8))
        greedy, following = Greedy(other, vocabulary), torch.zeros(2 * samples, dtype=torch.long, device=device)
        parts.add(greedy._parts)
        for step in range(STEPS):
            logits = _scores(samples, vocabulary, step, generator)
            for token in stops:
                logits[-1, 0, token] = -torch.inf  # the last one goes on
            logits = logits.to(device)
            odd = logits[:, 0].isnan().any(-1)
            live[step] += int((~one.stopped).sum())
            if step == 1:  # halves, and no longer side by side
                logits = logits.bfloat16().mT.contiguous().mT
            broken = bool(one.broken)
            chosen = one.advance(logits)
            greedy.take(other.joined(logits), following)
            assert (following < vocabulary).all()
            assert torch.equal(following.view(samples, 2)[~odd], chosen[~odd, None].expand(-1, 2))
            assert torch.equal(other.tokens[~odd], one.tokens[~odd])
            for name in ("broken", "step") if odd.any() else ("broken", "step", "stopped", "finished"):
                assert torch.equal(getattr(other, name), getattr(one, name)), (samples, vocabulary, step, name)
            assert step != STEPS - 1 or (one.broken and not broken)
            one.broken.zero_()
            other.broken.zero_()
            other.tokens[odd], other.stopped[odd] = one.tokens[odd], one.stopped[odd]
    assert all(live.values())
    assert parts == {1, 2, 3}


def _scores(samples: int, vocabulary: int, step: int, generator: torch.Generator) -> torch.Tensor:
    """Whole numbers, so that many are equal, of two branches."""
    scores = torch.randint(-9, 9, (samples, 2, vocabulary), generator=generator).float()
    if step == 2:
        scores[scores == 8] = -torch.inf
    if step == 4:
        scores[-1, 0] = -torch.inf
    if step == 5:
        scores[samples // 2, 0, vocabulary // 2] = torch.nan
    if step == 6:
        scores[-1, 0] = torch.nan
    return scores
