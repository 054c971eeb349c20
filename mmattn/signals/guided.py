"""Chunk-guided decoding (Lookback Lens, Chuang et al., EMNLP 2024): several continuations are drawn, the least risky is
kept, and the answer goes on from there.

B samples, K candidates of each; rows are ordered sample by sample: row = b * K + k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmattn.adapters import Adapter, Embedded, Sample
from mmattn.attention import Session
from mmattn.checks import whole
from mmattn.decoding.engine import Generation
from mmattn.decoding.sampling import Sampling, sample_keys, stream
from mmattn.errors import MmattnError
from mmattn.signals.capture import Masses, lookback
from mmattn.signals.detector import Detector

# Risks that differ by no more than rounding.
TIE = 1e-5


@dataclass(frozen=True)
class Guidance:
    """How chunks are drawn; the defaults are those of the public code.

    Attributes:
        candidates: K, continuations drawn at a time.
        chunk: tokens of each.
        temperature, top_p: see `Sampling`.
    """

    candidates: int = 8
    chunk: int = 8
    temperature: float = 0.9
    top_p: float = 0.95

    def __post_init__(self) -> None:
        whole("candidates", self.candidates, 1)
        whole("chunk", self.chunk, 1)
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How a token is drawn."""
        return Sampling(do_sample=True, temperature=self.temperature, top_p=self.top_p)


@torch.inference_mode()
def guided(
    adapter: Adapter,
    samples: Sequence[Sample],
    detector: Detector,
    guidance: Guidance,
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int = 64,
    seed: int = 0,
) -> list[Generation]:
    """Answers to samples with pictures, in one batch.

    A chunk's risk is the detector's on the mean of its tokens' features, the stop token included. The prompt is
    prefilled once for all candidates. What is drawn hangs on seed and sample, not on the batch.

    Raises:
        MmattnError: an encoder-decoder, or a detector of another model.
    """
    count = guidance.candidates
    made = adapter.prepare(samples)
    encoded = {pixels.key: pixels for one in made for pixels in one.pixels}
    features = dict(zip(encoded, adapter.encode(list(encoded.values())), strict=True))
    batch = adapter.embed(made, [[features[pixels.key] for pixels in one.pixels] for one in made])
    if batch.columns.cross:
        raise MmattnError(
            f"{adapter.family} with an encoder-decoder has no lookback ratio", "Use a decoder-only model."
        )
    rooms = [min(max_new_tokens, adapter.room(one)) for one in made]
    draws = torch.stack(
        [
            torch.rand(max_new_tokens, count, generator=stream(seed, "guided", f"{key}\0{repeat}"))
            for key, repeat in sample_keys(samples)
        ]
    )  # (B, steps, K)
    with adapter.session() as session:
        run = _Run(adapter, session, batch, detector)
        run.select(torch.arange(len(made)).repeat_interleave(count))
        answers = _answers(run, guidance, draws, rooms, stop_ids)
    return [_finish(adapter, ids, stop_ids) for ids in answers]


def _answers(
    run: _Run, guidance: Guidance, draws: torch.Tensor, rooms: Sequence[int], stop_ids: frozenset[int]
) -> list[list[int]]:
    """The tokens of each sample, its stop token included where it met one."""
    size, count = len(draws), guidance.candidates
    answers: list[list[int]] = [[] for _ in range(size)]
    ended = [False] * size
    for start in range(0, max(rooms), guidance.chunk):
        steps = range(start, min(start + guidance.chunk, max(rooms)))
        tokens, seen = [], []
        for step in steps:
            chosen = guidance.sampling.choose(run.logits, draws[:, step].reshape(-1).to(run.logits.device))
            tokens.append(chosen.cpu())
            seen.append(run.features)
            run.step(chosen)
        drawn, features = torch.stack(tokens, 1), torch.stack(seen, 1)  # (B K, n), (B K, n, F)
        lengths = torch.tensor([_length(row, stop_ids) for row in drawn.tolist()])
        inside = (torch.arange(len(steps)) < lengths[:, None])[..., None].to(features.device)
        mean = (features * inside).sum(1) / lengths[:, None].to(features)
        risks = run.detector.risks(mean).view(size, count)
        # A chunk of one token is judged by the row before it, which all candidates share: of equal ones the first.
        best = (risks <= risks.amin(-1, keepdim=True) + TIE).int().argmax(-1).cpu()
        rows = torch.arange(size) * count + best
        for index, row in enumerate(rows.tolist()):
            if not ended[index]:
                kept = drawn[row, : min(int(lengths[row]), rooms[index] - start)].tolist()
                answers[index] += kept
                ended[index] = kept[-1] in stop_ids or len(answers[index]) == rooms[index]
        if all(ended):
            break
        run.select(rows.repeat_interleave(count))
    return answers


def _length(row: list[int], stop_ids: frozenset[int]) -> int:
    """Tokens up to and with the first stop token."""
    return next((index + 1 for index, token in enumerate(row) if token in stop_ids), len(row))


class _Run:
    """The rows that are decoded, and what is known of the token that comes next.

    Attributes:
        logits: (rows, V). features: (rows, F) of the row that decides it.
    """

    logits: torch.Tensor
    features: torch.Tensor

    def __init__(self, adapter: Adapter, session: Session, batch: Embedded, detector: Detector) -> None:
        self.detector = detector
        self._adapter, self._session, self._batch, self._cache = adapter, session, batch, adapter.new_cache()
        self._context, self._image = batch.mask.bool(), batch.columns.image
        self._lengths = self._context.sum(-1)
        self._generated = 0
        self._call()

    def step(self, chosen: torch.Tensor) -> None:
        """Go on with the token `chosen` (rows,) in each row."""
        self._batch = self._adapter.follow(self._batch, chosen)
        self._generated += 1
        self._call()

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows; some may come several times."""
        rows = rows.to(self.logits.device)
        self._cache.batch_select_indices(rows)
        self._batch = self._batch.select(rows)
        self._context, self._image, self._lengths = (one[rows] for one in (self._context, self._image, self._lengths))
        self.logits, self.features = self.logits[rows], self.features[rows]

    def _call(self) -> None:
        rows = torch.full((len(self._batch.embeds), 1), -1)
        capture = Masses(rows, context=self._context, image=self._image)
        self._session.capture = capture
        hidden = self._adapter.decode(self._batch, self._cache)[:, -1]
        self.logits = self._adapter.logits(hidden)
        masses = capture.stacked()  # (L, rows, H, 1, 3)
        generated = torch.full_like(self._lengths, self._generated)[:, None]
        known = {"lookback": lookback(masses, self._lengths, generated)[..., 0], "image": masses[..., 0, 2]}
        parts = [known[name].transpose(0, 1).flatten(1) for name in self.detector.signals]
        self.features = torch.cat(parts, dim=1)


def _finish(adapter: Adapter, ids: list[int], stop_ids: frozenset[int]) -> Generation:
    stopped = bool(ids) and ids[-1] in stop_ids
    kept = tuple(ids[:-1] if stopped else ids)
    text = adapter.tokenizer.decode(list(kept), skip_special_tokens=True).strip()
    return Generation(text, kept, "stop" if stopped else "length")
