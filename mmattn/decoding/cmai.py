"""Cross-modal attention inhibition (from VMTC and CMAI, arXiv 2411.15453; no public code).

A text token should look where the text before it looks. Its own attention to the text, times that text's attention to
the picture, scores each image token; attention to those with low scores is inhibited:

    F_ti = sum over t' of A_tt' A_t'i,   A the mean over heads, t' the prompt's words after the picture, i image tokens
    A'_ti = factor A_ti                  for the `share` of image tokens with the smallest F_ti, then renormalised

A labelled reconstruction. Published: that attention from text to image is aggregated by that from text to text, and
that pairs with a low score are inhibited, within a model that is trained for it. Ours: the formula, layer by layer, and
every constant. In an encoder-decoder the words' attention lies in the encoder: there F_ti is A_ti.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site, View
from mmattn.checks import number, whole
from mmattn.decoding.method import Card, Method
from mmattn.decoding.sid import lowest


@dataclass(frozen=True)
class CMAI(Method):
    """Inhibit attention to image tokens that the words before do not look at.

    Attributes:
        share: part of the image tokens that is inhibited, for each row; 0 is the plain model.
        factor: what is left of their attention, before renormalising; 1 is the plain model.
        start: first layer that is edited.
    """

    share: float = 0.5
    factor: float = 0.0
    start: int = 2

    name: ClassVar[str] = "cmai"
    card: ClassVar[Card] = Card(
        summary="Inhibit attention to image tokens that the words before do not look at.",
        source="CMAI, arXiv 2411.15453, no code",
        formula="ours, from the abstract and a summary",
        exact=False,
        branches=1,
        extra_passes="none; no captured step on a GPU",
        defaults_from="ours: the paper's are not published, and nothing was tuned",
    )

    def __post_init__(self) -> None:
        number("CMAI share", self.share, 0, 1)
        number("CMAI factor", self.factor, 0, 1)
        whole("CMAI start", self.start, 0)

    @property
    def captured(self) -> bool:
        return not self.edits()  # what it keeps of the prompt has no fixed shape

    def edits(self) -> tuple[Edit, ...]:
        return () if self.share == 0 or self.factor == 1 else (Inhibit(self.share, self.factor, self.start),)


@dataclass(frozen=True)
class Inhibit(Edit):
    """See the module."""

    share: float
    factor: float
    start: int

    views: ClassVar[bool] = True

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        return layer >= self.start

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        low = lowest(self._focus(weights, site), site.image[:, 0].expand(-1, weights.shape[2], -1), self.share)
        kept = torch.where(low[:, None], self.factor * weights, weights)
        total = kept.sum(-1, keepdim=True)
        return torch.where(total > 0, kept / total, weights)

    def _focus(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        """F (B, R, S)."""
        mean = weights.mean(1)
        view = site.view
        if view is not None:
            site.recall("words", lambda: view.columns.rows)
            site.recall("looks", lambda: _looks(view, site.image[:, 0]))
        if "looks" not in site.memory:
            return mean
        words, looks = site.memory["words"], site.memory["looks"]
        said = mean.gather(-1, words[:, None].expand(-1, mean.shape[1], -1))
        focus = said @ looks
        return torch.nn.functional.pad(focus, (0, mean.shape[-1] - focus.shape[-1]))


def _looks(view: View, image: torch.Tensor) -> torch.Tensor:
    """Attention (B, R, S) of the words on image tokens, mean over heads; rows that repeat another are 0."""
    found = [part.softmax(-1).nan_to_num(0).mean(1) * image for part in view.portions(view.columns.rows)]
    rows = view.columns.rows
    own = rows != rows[:, :1]
    own[:, 0] = True
    return torch.cat(found, 1) * (own & view.columns.valid)[..., None]
