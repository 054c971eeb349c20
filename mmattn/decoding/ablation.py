"""What each head does for right answers: every head is taken out in turn, many of them in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import torch

from mmattn.adapters import Sample
from mmattn.attention import Edit, Site
from mmattn.checks import whole
from mmattn.errors import MmattnError, unknown
from mmattn.images import ImageLike, open_image

if TYPE_CHECKING:
    from mmattn.vlm import VLM

Ablation = Literal["mean", "zero"]
KINDS = ("mean", "zero")


@dataclass(frozen=True)
class Asked:
    """A question about a picture, and its right answer: words, of which the first token counts, or a token's id."""

    image: ImageLike
    prompt: str
    answer: str | int


def measure_heads(
    vlm: VLM, questions: Sequence[Asked], *, ablation: Ablation = "mean", batch_size: int = 16
) -> torch.Tensor:
    """Mean fall of the right answer's probability when a head is ablated: (layers, heads) float64, for V-SEAM.

    Args:
        vlm: the model.
        questions: those it is measured on; do not report figures on them.
        ablation: what the head gives instead, before the output projection: the mean of its layer's other heads, or
            zero.
        batch_size: heads per forward.

    Raises:
        MmattnError: there are no questions, or an answer is empty.
    """
    if not questions:
        raise MmattnError("There is nothing to measure the heads on", "Give questions with their right answers.")
    return torch.stack(list(head_falls(vlm, questions, ablation=ablation, batch_size=batch_size))).mean(0)


def head_falls(
    vlm: VLM, questions: Iterable[Asked], *, ablation: Ablation = "mean", batch_size: int = 16
) -> Iterator[torch.Tensor]:
    """As `measure_heads`, question by question."""
    size = whole("batch_size", batch_size, 1)
    if ablation not in KINDS:
        raise unknown("ablation", ablation, KINDS)
    heads = vlm.model.config.get_text_config().num_attention_heads
    pairs = list(product(range(vlm.adapter.depth), range(heads)))
    for asked in questions:
        with torch.inference_mode():
            rows = _Rows(vlm, asked)
            ablated = [rows.right(pairs[at : at + size], ablation) for at in range(0, len(pairs), size)]
            fall = rows.right((), ablation) - torch.cat(ablated)
        yield fall.view(-1, heads)


class _Rows:
    """One question, any number of times in a batch."""

    def __init__(self, vlm: VLM, asked: Asked) -> None:
        self._adapter = vlm.adapter
        self._token = asked.answer if isinstance(asked.answer, int) else vlm.first_token(asked.answer)
        self._prompt = self._adapter.prepare([Sample((open_image(asked.image),), asked.prompt)])[0]
        self._features = self._adapter.encode(self._prompt.pixels)

    def right(self, pairs: Sequence[tuple[int, int]], ablation: Ablation) -> torch.Tensor:
        """The right token's probability, float64 on the CPU: with each of `pairs` ablated, or of the whole model."""
        count = len(pairs) or 1
        batch = self._adapter.embed([self._prompt] * count, [self._features] * count)
        edits = [Ablate(tuple(pairs), ablation)] if pairs else []
        with self._adapter.session(edits=edits) as session:
            session.columns = batch.columns
            logits = self._adapter.logits(self._adapter.decode(batch)[:, -1])
        return logits.double().softmax(-1)[:, self._token].cpu()


@dataclass(frozen=True)
class Ablate(Edit):
    """Row b of the batch loses what head `pairs[b]` = (layer, head) gives."""

    pairs: tuple[tuple[int, int], ...]
    ablation: Ablation

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        return any(one == layer for one, _ in self.pairs)

    def output(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        lost = torch.tensor([head if layer == site.layer else -1 for layer, head in self.pairs], device=output.device)
        count = output.shape[2]
        mine = (lost[:, None] == torch.arange(count, device=output.device))[:, None, :, None]
        others = (output.sum(2, keepdim=True) - output) / max(count - 1, 1)
        return torch.where(mine, others if self.ablation == "mean" else torch.zeros_like(output), output)
