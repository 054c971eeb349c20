"""Run by `fast_step.py`: the kernels that choose tokens against the tensor operations that they stand for."""

from __future__ import annotations

import torch

from mmattn.decoding.fast.choosing import Greedy
from mmattn.decoding.method import Method
from mmattn.decoding.progress import Progress
from mmattn.decoding.sampling import Sampling

BUFFERS = ("tokens", "stopped", "finished", "broken", "step")


def choices(device: str) -> None:
    """Answers of several lengths and ends, from scores with ties, forbidden tokens and none that is left."""
    for samples, vocabulary, stops in ((1, 50, ()), (5, 1024, (7, 0, 31)), (19, 1100, (7,)), (2, 2500, (0, 7))):
        generator = torch.Generator().manual_seed(samples + vocabulary)
        one, other = (Progress(samples, 8, Method(), Sampling(), stops, 3, torch.device(device)) for _ in range(2))
        rooms = torch.randint(0, 7, (samples,), generator=generator).tolist()
        for progress in (one, other):
            progress.start(rooms, torch.zeros(samples, 8))
        greedy, following = Greedy(other, vocabulary), torch.zeros(2 * samples, dtype=torch.long, device=device)
        for step in range(6):
            logits = torch.randint(-9, 9, (samples, 2, vocabulary), generator=generator).float()
            logits[logits == 8] = -torch.inf if step == 2 else 8.0
            if step == 4:
                logits[-1, 0] = -torch.inf
            if step == 5:
                logits[samples // 2, 0, vocabulary // 2] = torch.nan
            logits = logits.to(device)
            broken = logits[:, 0].isnan().any(-1)
            chosen = one.advance(logits)
            greedy.take(other.joined(logits), following)
            for name in BUFFERS:
                found, expected = getattr(other, name), getattr(one, name)
                if name == "tokens":  # what stands for scores that are no numbers counts for nothing
                    found, expected = found[~broken], expected[~broken]
                    assert (following.view(samples, 2) == chosen[:, None])[~broken].all()
                if name != "finished" or not broken.any():
                    assert torch.equal(found, expected), (samples, vocabulary, step, name)
