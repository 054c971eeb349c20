"""Signals of an answer, from one decoder call over prompt and answer (and one without the picture).

Row t is the one that decided token t of the answer: that of the token before it.
L layers, H heads, T tokens of the answer, B batch, S keys, N image tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mmattn.adapters import Adapter, Embedded, Prepared, Sample, Shares
from mmattn.checks import whole
from mmattn.errors import MmattnError
from mmattn.grounding.attention import Attention
from mmattn.grounding.tokens import character_ranges
from mmattn.signals.capture import HeadOutputs, Masses, lookback
from mmattn.signals.words import Word, spelling, word_spans

if TYPE_CHECKING:
    from mmattn.signals.detector import Detector

Pairs = Sequence[tuple[int, int]]
# Heads of each layer that count for the divergence of a token.
TOP_HEADS = 8


@dataclass(frozen=True, eq=False)
class Signals:
    """What attention tells of one answer, one entry per generated token.

    Attributes:
        text: the answer. ranges: character range of each token in it. tokens: each as text.
        lookback: (L, H, T) float32, ratio of the mean weight of a key of the prompt to that plus the mean weight of a
            key of the answer so far; 1 for the first token. None in encoder-decoder models, whose rows see the prompt
            alone.
        image: (L, H, T) float32, the part of the row that lies on the picture.
        probability: (T,) float32, of the token under the model.
        divergence: (L, H, T) float32, how far each head's output moves when the picture is taken away; None where not
            asked for.
        looked: where each token looks: (1, 1, T, N), the mean of the pointing heads.
    """

    text: str
    ranges: tuple[tuple[int, int], ...]
    tokens: tuple[str, ...]
    lookback: torch.Tensor | None
    image: torch.Tensor
    probability: torch.Tensor
    looked: Attention
    divergence: torch.Tensor | None = None

    def token_divergence(self, top: int = TOP_HEADS) -> torch.Tensor:
        """T-VHD (T,): per layer the `top` most moved heads, summed over them and over the layers."""
        if self.divergence is None:
            raise MmattnError("The divergence was not read", "Ask for it: divergence=True.")
        kept = min(top, self.divergence.shape[1])
        return self.divergence.topk(kept, dim=1).values.sum(dim=(0, 1))

    def features(self, names: Sequence[str], tokens: Sequence[int]) -> torch.Tensor:
        """Mean over `tokens` of the signals `names` of each layer and head, one after the other: (len(names) L H,)."""
        parts = []
        for name in names:
            signal = getattr(self, name)
            if signal is None:
                raise MmattnError(f"The signal {name} was not read", "An encoder-decoder has no lookback ratio.")
            parts.append(signal[..., list(tokens)].mean(-1).flatten())
        return torch.cat(parts)

    def words(self, detector: Detector | None = None) -> tuple[Word, ...]:
        """The answer word by word, with the risk that `detector` sees in each."""
        moved = None if self.divergence is None else self.token_divergence()
        found = []
        for span in word_spans(self.text):
            tokens = spelling(self.ranges, span)
            if not tokens:
                continue
            at = list(tokens)
            found.append(
                Word(
                    self.text[slice(*span)],
                    *span,
                    tokens,
                    image=float(self.image[..., at].mean()),
                    place=self.looked.peak(rows=at),
                    lookback=None if self.lookback is None else float(self.lookback[..., at].mean()),
                    probability=float(self.probability[at].prod()),
                    divergence=None if moved is None else float(moved[at].mean()),
                    risk=None if detector is None else detector.risk(self, at),
                )
            )
        return tuple(found)

    def to_json(self, detector: Detector | None = None) -> dict[str, Any]:
        """The answer and its words, as JSON values."""
        return {"answer": self.text, "words": [word.to_json() for word in self.words(detector)]}


@torch.inference_mode()
def read(
    adapter: Adapter, samples: Sequence[Sample], pointing: Pairs | None = None, divergence: bool = False
) -> list[Signals]:
    """The signals of samples that carry an answer and pictures, in one batch.

    Args:
        pointing: (layer, head) pairs that tell where a token looks; None for all.
        divergence: read the answer without the pictures, too.
    """
    made = adapter.prepare(samples)
    chosen = _heads(adapter, pointing)
    shares: Shares = {}
    batch = _embed(adapter, made, shares)
    rows = _rows(adapter, made, batch)
    capture = Masses(
        rows, batch.columns.places(), context=_context(made, batch), image=batch.columns.image, pointing=chosen
    )
    seen = HeadOutputs(rows)
    hidden = _call(adapter, batch, capture, [seen] if divergence else [])
    lines = torch.arange(len(rows), device=hidden.device)[:, None]
    scores = adapter.logits(hidden[lines, rows.to(hidden.device)]).log_softmax(-1).cpu()
    moved = None
    if divergence:
        blind = adapter.prepare([replace(one, images=()) for one in samples])
        other = _embed(adapter, blind)
        without = HeadOutputs(_rows(adapter, blind, other))
        _call(adapter, other, None, [without])
        moved = (seen.stacked() - without.stacked()).norm(dim=-1).transpose(2, 3)  # (L, B, H, R)
    masses = capture.stacked().cpu()
    lengths = torch.tensor([one.layout.prompt_length for one in made])
    ratios = None
    if not batch.columns.cross:
        ratios = lookback(masses, lengths, torch.arange(rows.shape[1]).expand(len(rows), -1))
    assert capture.looked is not None
    looked = capture.looked.cpu() / sum(map(len, chosen.values()))
    return [
        _signals(
            adapter,
            one,
            None if ratios is None else ratios[:, index],
            masses[:, index, :, :, 2],
            scores[index],
            looked[index],
            shares,
            None if moved is None else moved[:, index],
        )
        for index, one in enumerate(made)
    ]


def _signals(
    adapter: Adapter,
    prepared: Prepared,
    ratios: torch.Tensor | None,
    image: torch.Tensor,
    scores: torch.Tensor,
    looked: torch.Tensor,
    shares: Shares,
    moved: torch.Tensor | None,
) -> Signals:
    """Those of one sample, from what was read of its batch: rows beyond its answer are cut off."""
    layout = prepared.layout
    ids = prepared.ids[layout.prompt_length :]
    count = len(ids)
    tokens = tuple(adapter.word(int(one)) for one in ids)
    text, ranges = character_ranges(adapter.tokenizer, ids.tolist())
    map_ = Attention(
        looked[None, None, :count, : len(layout.image_tokens)],
        layout,
        tuple(range(layout.prompt_length - 1, layout.length - 1)),
        tokens,
        (0,),
        1,
        tuple(shares.get(one.key) for one in prepared.pixels),
    )
    return Signals(
        text,
        tuple(ranges),
        tokens,
        None if ratios is None else ratios[..., :count],
        image[..., :count],
        scores[:count].gather(-1, ids[:, None])[:, 0].exp(),
        map_,
        None if moved is None else moved[..., :count],
    )


def _embed(adapter: Adapter, made: Sequence[Prepared], shares: Shares | None = None) -> Embedded:
    distinct = {pixels.key: pixels for one in made for pixels in one.pixels}
    features = dict(zip(distinct, adapter.encode(list(distinct.values()), shares), strict=True)) if distinct else {}
    return adapter.embed(made, [[features[pixels.key] for pixels in one.pixels] for one in made])


def _rows(adapter: Adapter, made: Sequence[Prepared], batch: Embedded) -> torch.Tensor:
    """(B, T) query rows that decide the tokens of the answers; shorter ones repeat their last."""
    pads = (batch.mask == 0).sum(-1).tolist()
    rows = []
    for one, pad in zip(made, pads, strict=True):
        if not one.layout.answer:
            raise MmattnError("There is no answer to read", "Give the answer with the sample.")
        deciding = range(one.layout.prompt_length - 1, one.layout.length - 1)
        rows.append([row + pad for row in adapter.rows(deciding, one)])
    widest = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (widest - len(row))] for row in rows])


def _context(made: Sequence[Prepared], batch: Embedded) -> torch.Tensor:
    """(B, S) bool: keys that hold the prompt. An encoder's keys all do."""
    known = torch.ones_like(batch.columns.image)
    if not batch.columns.cross:
        for row, one in zip(known, made, strict=True):
            end = len(row) - len(one.layout.answer)
            row[end:] = False
    return known


def _call(adapter: Adapter, batch: Embedded, capture: Masses | None, edits: Sequence[HeadOutputs]) -> torch.Tensor:
    """One decoder call: hidden states (B, S, D)."""
    with adapter.session(capture, edits) as session:
        session.columns = batch.columns
        return adapter.decode(batch)


def _heads(adapter: Adapter, pairs: Pairs | None) -> dict[int, list[int]]:
    """Heads by layer."""
    depth, count = adapter.depth, adapter.model.config.get_text_config().num_attention_heads
    if not pairs:
        return {layer: list(range(count)) for layer in range(depth)}
    found: dict[int, list[int]] = {}
    for layer, head in pairs:
        place = whole("A layer of pointing", layer, 0, depth - 1)
        found.setdefault(place, []).append(whole("A head of pointing", head, 0, count - 1))
    return found
