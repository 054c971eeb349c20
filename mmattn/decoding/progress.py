"""What a batch has generated so far, in fixed buffers on the device, so that a step needs no word from the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmattn.decoding.method import Method, Step
from mmattn.decoding.sampling import Sampling


class Progress:
    """Tokens of B samples, one column per step.

    Attributes:
        tokens: (B, steps), filled up with `filler` after a sample's end.
        finished: () bool, whether every sample has ended.
        broken: () bool, whether scores were not numbers.
        stopped: (B,) bool, which samples have ended.
        rooms: (B,), how many tokens a sample may generate.
        step: (1,), the number of the next token.
        stop_ids: (stops,), tokens that end a sample.
        filler: (), the token that stands after an answer's end.
    """

    def __init__(
        self,
        samples: int,
        steps: int,
        method: Method,
        sampling: Sampling,
        stop_ids: Sequence[int],
        filler: int,
        device: torch.device,
    ) -> None:
        self._method, self._sampling = method, sampling
        self.stop_ids = torch.tensor(sorted(stop_ids), device=device, dtype=torch.long)
        self.filler = torch.tensor(filler, device=device)
        self.tokens = torch.full((samples, steps), filler, device=device)
        self.finished, self.broken = (torch.zeros((), dtype=torch.bool, device=device) for _ in range(2))
        self.stopped = torch.zeros(samples, dtype=torch.bool, device=device)
        self.rooms = torch.zeros(samples, dtype=torch.long, device=device)
        self._uniforms = torch.zeros(samples, steps, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)

    def start(self, rooms: Sequence[int], uniforms: torch.Tensor) -> None:
        """Begin anew with samples that may generate `rooms` tokens and draw by `uniforms` (B or fewer, steps or fewer).

        Samples beyond those given count as ended.
        """
        for buffer in (self.finished, self.broken, self.rooms, self.step, self._uniforms):
            buffer.zero_()
        self.tokens.copy_(self.filler.expand_as(self.tokens))
        self.rooms[: len(rooms)] = torch.tensor(rooms)
        self._uniforms[: len(uniforms), : uniforms.shape[1]] = uniforms
        self.stopped.copy_(self.rooms == 0)

    def advance(self, logits: torch.Tensor, exits: torch.Tensor | None = None) -> torch.Tensor:
        """Choose each sample's next token (B,) from its branches' scores (B, K, V) and its exits' (B, exits, V)."""
        return self.take(self.joined(logits, exits))

    def joined(self, logits: torch.Tensor, exits: torch.Tensor | None = None) -> torch.Tensor:
        """What the method makes of them: (B, V)."""
        return self._method.combine(Step(logits, self.step[0], exits))

    def take(self, scores: torch.Tensor) -> torch.Tensor:
        """Choose each sample's next token (B,) from `scores` (B, V)."""
        # The largest of scores some of which are no numbers is none, either; a contrast may have forbidden them all.
        top = scores.amax(-1)
        self.broken |= ((top.isnan() | top.isneginf()) & ~self.stopped).any()
        drawn = self._uniforms.index_select(1, self.step)[:, 0] if self._sampling.do_sample else None
        chosen = self._sampling.choose(scores, drawn)
        chosen = torch.where(self.stopped, self.filler, chosen)
        self.tokens.index_copy_(1, self.step, chosen[:, None])
        self.step += 1
        self.stopped |= (chosen[:, None] == self.stop_ids).any(-1) | (self.rooms <= self.step)
        self.finished.copy_(self.stopped.all())
        return chosen
