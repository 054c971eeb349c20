"""Attention rows of many prompts about one picture: the picture is encoded once, and prefilled once where that can be.

B batch, T queries, S keys, P tokens of the shared beginning, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from mmattn.adapters import Adapter, Embedded, Prepared, Sample, SharedCache
from mmattn.attention import Columns, Edit, RowCapture, Session, Site
from mmattn.decoding.prefix import resume
from mmattn.errors import MmattnError
from mmattn.grounding.attention import Attention


@dataclass(frozen=True)
class Job:
    """One prompt about the picture, and the positions of the tokens whose rows are wanted (at least one)."""

    prepared: Prepared
    positions: tuple[int, ...]


@dataclass
class Reader:
    """Reads rows for jobs that all show the same single picture.

    Where the picture's features do not depend on the words and the prompts begin alike up to the end of the picture,
    that beginning is prefilled once and its keys and values serve every prompt. Weights are handed out batch by
    batch, so memory does not grow with the number of jobs.

    Attributes:
        picture: upright RGB.
        batch_size: prompts per decoder call; changes no number beyond rounding.
    """

    adapter: Adapter
    picture: Image.Image
    batch_size: int = 16
    _features: dict[str, torch.Tensor] = field(default_factory=dict)
    _shares: dict[str, torch.Tensor] = field(default_factory=dict)

    def other(self, prompt: str) -> Job:
        """The last token of another prompt about the picture."""
        prepared = self.adapter.prepare([Sample((self.picture,), prompt)])[0]
        return Job(prepared, (prepared.layout.prompt_length - 1,))

    def rows(self, jobs: Sequence[Job], layers: tuple[int, ...] | None = None) -> Iterator[Attention]:
        """One `Attention` per job, in order, of `layers` (all by default)."""
        wanted = tuple(range(self.adapter.depth)) if layers is None else layers
        shared = _shared_length(self.adapter, jobs)
        beginning: SharedCache | None = None
        for start in range(0, len(jobs), self.batch_size):
            chunk = jobs[start : start + self.batch_size]
            with torch.inference_mode():
                batch = self._embed(chunk)
                if shared and beginning is None:
                    beginning = self._begin(batch, chunk[0], shared)
                weights = self._read(chunk, batch, wanted, beginning)
            for job, one in zip(chunk, weights, strict=True):
                yield self.attention(job, one, wanted)
            del weights, one  # before the next batch comes

    def head_means(self, job: Job) -> torch.Tensor:
        """Attention of every token to every token, mean over heads: (L, T, T) float32 on the CPU.

        Raises:
            MmattnError: the decoder looks at the picture by cross-attention.
        """
        capture = _HeadMean(torch.arange(job.prepared.layout.length)[None])
        with torch.inference_mode(), self.adapter.session(capture):
            self.adapter.decode(self._one_sequence(job))
        return capture.stacked()[:, 0, 0].cpu()

    def gradient_means(self, job: Job) -> torch.Tensor:
        """Attention of every token to every token times its gradient, negative products as 0, mean over heads.

        The gradient is that of the score of the likeliest next token after each of the job's tokens, summed.

        Returns:
            (L, T, T) float32 on the CPU.

        Raises:
            MmattnError: the decoder looks at the picture by cross-attention.
        """
        edit = _Kept()
        with torch.inference_mode(False), torch.no_grad():
            batch = self._one_sequence(job)
        batch.embeds.requires_grad_()
        every = torch.arange(job.prepared.layout.length, device=batch.embeds.device)[None]
        with torch.inference_mode(False), torch.enable_grad(), self.adapter.session(edits=[edit]) as session:
            session.columns = Columns(batch.columns.image, every, torch.ones_like(every, dtype=torch.bool))
            hidden = self.adapter.decode(batch)[0, list(job.positions)]
            target = self.adapter.logits(hidden).amax(-1).sum()
            parts = [part for layer in sorted(edit.parts) for part in edit.parts[layer]]
            slopes = torch.autograd.grad(target, parts)
        products = [(part.detach() * slope).clamp(min=0).mean(1)[0] for part, slope in zip(parts, slopes, strict=True)]
        return torch.cat(products).view(len(edit.parts), *batch.columns.image.shape[1:], -1).cpu()

    def _one_sequence(self, job: Job) -> Embedded:
        """One job, of a decoder whose rows see the picture and each other."""
        batch = self._embed([job])
        if batch.columns.cross:
            raise MmattnError(
                f"Attention cannot be followed through {self.adapter.family}'s encoder and decoder",
                "Use another method, such as tag.",
            )
        return batch

    def _begin(self, batch: Embedded, job: Job, length: int) -> SharedCache | None:
        """Keys and values of the first `length` tokens of `job`, the first row of `batch`.

        None where the model's layers do not share one cache.
        """
        cache = self.adapter.new_cache()
        if not isinstance(cache, SharedCache):
            return None
        first, lengths = (torch.tensor([one], device=batch.embeds.device) for one in (0, length))
        padding = lengths.new_tensor([batch.mask.shape[1] - len(job.prepared.ids)])
        self.adapter.decode(self.adapter.span(batch, first, padding, lengths), cache)
        return cache

    def _read(
        self, jobs: Sequence[Job], batch: Embedded, layers: tuple[int, ...], beginning: SharedCache | None
    ) -> list[torch.Tensor]:
        """(layers, H, rows, image tokens) of each job, where the model is: maps are made of them there."""
        # Counted from the end, rows are the same whether or not the call does the beginning, too.
        pads = (batch.mask == 0).sum(-1) - batch.mask.shape[1]
        rows = [
            [row + pad for row in self.adapter.rows(job.positions, job.prepared)]
            for job, pad in zip(jobs, pads.tolist(), strict=True)
        ]
        widest = max(map(len, rows))
        padded = torch.tensor([[*row, *[row[-1]] * (widest - len(row))] for row in rows])
        columns = torch.stack([one.nonzero()[:, 0] for one in batch.columns.image.cpu()])
        capture = RowCapture(padded, columns, layers)
        with self.adapter.session(capture) as session:
            self._call(jobs, batch, session, beginning)
        weights = capture.stacked()
        return [weights[:, index, :, : len(row)] for index, row in enumerate(rows)]

    def _call(
        self, jobs: Sequence[Job], batch: Embedded, session: Session, beginning: SharedCache | None
    ) -> torch.Tensor:
        """One decoder call, on what follows the `beginning`: hidden states, those of the last tokens last."""
        if beginning is None:
            return self.adapter.decode(batch)
        tail = batch.mask.shape[1] - beginning.get_seq_length()
        spans = [(0, 0, max(len(job.prepared.ids) - tail, 0)) for job in jobs]
        cache = SharedCache(self.adapter.depth)
        return resume(self.adapter, batch, beginning, spans, tail, cache, session, self.adapter.decode)

    def _embed(self, jobs: Sequence[Job]) -> Embedded:
        """One left-padded batch; pictures that were encoded before are not encoded again."""
        pixels = [job.prepared.pixels[0] for job in jobs]
        new = {one.key: one for one in pixels if one.key not in self._features}
        if new:
            # Features that depend on the words are as many as the prompts; keep only those of this batch.
            if next(iter(new.values())).words is not None:
                self._features.clear()
                self._shares.clear()
                new = {one.key: one for one in pixels}
            encoded = self.adapter.encode(list(new.values()), self._shares)
            self._features.update(zip(new, encoded, strict=True))
        return self.adapter.embed([job.prepared for job in jobs], [[self._features[one.key]] for one in pixels])

    def attention(self, job: Job, weights: torch.Tensor, layers: tuple[int, ...] = (0,)) -> Attention:
        """`weights` (layers, H, rows, image tokens) of one job, with all that is needed to map them."""
        depth = self.adapter.depth
        prepared = job.prepared
        words = tuple(self.adapter.word(int(prepared.ids[position])) for position in job.positions)
        share = self._shares.get(prepared.pixels[0].key)
        return Attention(weights, prepared.layout, job.positions, words, layers, depth, (share,))


class _HeadMean(RowCapture):
    """Keeps only the mean over the heads, so that no more than one layer's heads are there at once."""

    def store(self, layer: int, weights: torch.Tensor) -> None:
        super().store(layer, weights.mean(1, keepdim=True))


class _Kept(Edit):
    """Keeps the weights that the output is computed from, so that gradients with regard to them can be taken."""

    def __init__(self) -> None:
        self.parts: dict[int, list[torch.Tensor]] = {}

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        self.parts.setdefault(site.layer, []).append(weights)
        return weights


def _shared_length(adapter: Adapter, jobs: Sequence[Job]) -> int:
    """How many tokens the jobs' sequences begin with alike, if the picture is among them and no row is; else 0."""
    first = jobs[0].prepared
    if len(jobs) == 1 or adapter.mixed or any(job.prepared.pixels[0].key != first.pixels[0].key for job in jobs):
        return 0
    longest = min(min(job.positions) for job in jobs)
    for job in jobs[1:]:
        length = min(longest, len(job.prepared.ids))
        differ = (job.prepared.ids[:length] != first.ids[:length]).nonzero()
        longest = int(differ[0, 0]) if len(differ) else length
    return longest if longest >= first.layout.images[0].tokens.stop else 0
