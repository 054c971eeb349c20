"""Scorers that ask the vision-language model itself: where it looks while it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmattn.adapters import View
from mmattn.checks import whole
from mmattn.decoding.recorder import Capture
from mmattn.prompting.relevance import Grid, Relevance

if TYPE_CHECKING:
    from mmattn.grounding import Attention
    from mmattn.vlm import VLM


class LvlmScorer:
    """Attention of the answer's tokens to the picture, mean over heads and tokens (arXiv 2409.17143).

    Args:
        vlm: the model that is asked; of any family.
        layers: decoder layers to average; by default the published one, layer 20 of 32, or the one at that share of
            another depth.
        heads: heads to average; all by default.
        tokens: how many tokens of the answer are read; the answer costs that many decoding steps.
        batch_size: questions per decoder call.

    Raises:
        MmattnError: no such layer or head.
    """

    def __init__(
        self,
        vlm: VLM,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        tokens: int = 32,
        batch_size: int = 16,
    ) -> None:
        depth = vlm.adapter.depth
        self.vlm, self.heads = vlm, heads
        self.layers = tuple(layers) if layers is not None else (depth * 20 // 32,)
        self.tokens = whole("tokens", tokens, 1)
        self.batch_size = batch_size
        count = vlm.model.config.get_text_config().num_attention_heads
        Capture(self.layers, heads).resolved(depth, count)  # tells of numbers that the model does not have

    def score(self, pictures: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> list[list[Relevance]]:
        """See `Scorer`."""
        answers = self.vlm.generate(
            [list(shown) for shown in pictures],
            questions,
            max_new_tokens=self.tokens,
            batch_size=self.batch_size,
            capture=Capture(layers=self.layers),
        )
        scored = []
        for shown, question, answer in zip(pictures, questions, answers, strict=True):
            read = answer.attention
            if read is None or not read.positions:  # the model had nothing to say: what made it stop is read instead
                read = self.vlm.attend(list(shown), question, rows="last", layers=self.layers)
            scored.append([self._relevance(read, place) for place in range(len(shown))])
        return scored

    def _relevance(self, read: Attention, place: int) -> Relevance:
        grids = read.grids(place, layers=self.layers, heads=self.heads)
        views = read.layout.images[place].views
        finest = max(views, key=lambda view: view.rows * view.columns)
        total = sum((_onto(finest, view, grid) for view, grid in zip(views, grids, strict=True)), start=np.float32(0))
        return Relevance(np.asarray(total, dtype=np.float32), finest.to_pixels, read.layout.images[place].size)


class ContrastScorer:
    """Attention under the question minus attention under a general instruction, at the first token of the answer.

    What any instruction would look at cancels; the signal of IAVA (arXiv 2503.18556), whose aggregation over layers
    and heads is not published: here it is chosen as for `LvlmScorer`.

    Args:
        vlm, layers, heads, batch_size: as for `LvlmScorer`.
        general: the instruction that is subtracted. Equal to the question, it leaves a flat map.
        tokens: how many tokens of either answer are read.
    """

    def __init__(
        self,
        vlm: VLM,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        general: str = "Describe the content of the image.",
        tokens: int = 1,
        batch_size: int = 16,
    ) -> None:
        self.general = general
        self._scorer = LvlmScorer(vlm, layers, heads, tokens, batch_size)

    def score(self, pictures: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> list[list[Relevance]]:
        """See `Scorer`."""
        asked = self._scorer.score(pictures, questions)
        distinct = {tuple(map(id, shown)): shown for shown in pictures}
        plain = dict(
            zip(distinct, self._scorer.score(list(distinct.values()), [self.general] * len(distinct)), strict=True)
        )
        return [
            [_minus(one, other) for one, other in zip(scored, plain[tuple(map(id, shown))], strict=True)]
            for shown, scored in zip(pictures, asked, strict=True)
        ]


def _minus(one: Relevance, other: Relevance) -> Relevance:
    return Relevance(one.focus - other.focus, one.to_pixels, one.size)


def _onto(target: View, view: View, grid: Grid) -> Grid:
    """`grid` of `view` at the cell centres of `target`, a view of the same picture with smaller cells."""
    if target is view:
        return grid
    x = target.to_pixels.scale_x * (np.arange(target.columns) + 0.5) + target.to_pixels.offset_x
    y = target.to_pixels.scale_y * (np.arange(target.rows) + 0.5) + target.to_pixels.offset_y
    column = np.floor((x - view.to_pixels.offset_x) / view.to_pixels.scale_x).astype(np.int64)
    row = np.floor((y - view.to_pixels.offset_y) / view.to_pixels.scale_y).astype(np.int64)
    inside = ((row >= 0) & (row < view.rows))[:, None] & ((column >= 0) & (column < view.columns))
    taken = grid[row.clip(0, view.rows - 1)][:, column.clip(0, view.columns - 1)]
    return np.where(inside, taken, np.float32(0))
