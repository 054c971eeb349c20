"""Which dimensions of a language model make sinks: what `VAR` asks for, found from data for any backbone.

A dimension is one of them if the sequence's first token exceeds tau there, in the hidden states that enter the layer,
normalised as VAR does, in most layers of most prompts (Kang et al., ICLR 2025, give such dimensions for LLaMA-2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmattn.adapters import Adapter, Sample
from mmattn.attention import Edit, Site
from mmattn.checks import number
from mmattn.decoding.var import VAR, normalised
from mmattn.errors import MmattnError
from mmattn.images import open_image

if TYPE_CHECKING:
    from mmattn.vlm import VLM

PROMPT = "Describe the image."


@dataclass(frozen=True)
class Sinks:
    """What was found in some pictures.

    Attributes:
        tau: how large a sink is.
        dimensions: in most layers of most pictures the first token exceeds tau here.
        by_layer: for each layer, the dimensions in which it does so in most pictures.
        visual: for each layer, image tokens per picture that exceed tau in one of `dimensions`, on the average.
        text: the same of all other tokens.
        largest: the dimensions in which the first token is largest, with its size there: the median over layers and
            pictures.
        pictures: how many were looked at.
    """

    tau: float
    dimensions: tuple[int, ...]
    by_layer: tuple[tuple[int, ...], ...]
    visual: tuple[float, ...]
    text: tuple[float, ...]
    largest: tuple[tuple[int, float], ...]
    pictures: int

    @property
    def method(self) -> str | None:
        """VAR with these dimensions, as `generate(method=...)` takes it; None where there are none."""
        tau = "" if self.tau == VAR.tau else f", tau={self.tau:g}"
        numbers = " ".join(map(str, self.dimensions))
        return f'var(dimensions="{numbers}"{tau})' if self.dimensions else None


def find_sinks(model: VLM, images: Sequence[Any], prompt: str = PROMPT, tau: float = VAR.tau) -> Sinks:
    """Look for sink dimensions in what a model makes of some pictures.

    Args:
        images: pictures, each for itself; a handful will do, since sinks hardly depend on them.
        prompt: asked about each.
        tau: how large a dimension of the normalised first token must be.

    Raises:
        MmattnError: no picture, or none that can be read.
    """
    number("tau", tau, 0)
    if not images:
        raise MmattnError("There is no picture to look for sinks in", "Pass some.")
    looked = [_look(model.adapter, Sample((open_image(one),), prompt), tau) for one in images]
    first = torch.stack([torch.stack(one.first) for one in looked])  # (pictures, layers, D)
    most = (first > tau).float().mean(0) > 0.5
    chosen = (most.float().mean(0) > 0.5).nonzero()[:, 0]
    middle = first.flatten(0, 1).median(0).values
    top = middle.topk(min(5, len(middle)))
    visual, text = ([0.0] * len(most) for _ in range(2))
    for one in looked:
        for layer, (tokens, dimensions) in enumerate(one.over):
            sinks = torch.tensor(sorted(set(tokens[torch.isin(dimensions, chosen)].tolist())), dtype=torch.long)
            seen = int(one.image[sinks].sum())
            visual[layer] += seen / len(looked)
            text[layer] += (len(sinks) - seen) / len(looked)
    return Sinks(
        float(tau),
        tuple(chosen.tolist()),
        tuple(tuple(layer.nonzero()[:, 0].tolist()) for layer in most),
        tuple(visual),
        tuple(text),
        tuple(zip(top.indices.tolist(), (round(one, 2) for one in top.values.tolist()), strict=True)),
        len(looked),
    )


class _Watch(Edit):
    """Changes nothing, and keeps what VAR would see in each layer.

    Attributes:
        first: (D,) sizes of the first token. over: tokens, and the dimensions in which they exceed tau.
        image: (T,) bool, image tokens.
    """

    states: ClassVar[bool] = True

    def __init__(self, tau: float, image: torch.Tensor) -> None:
        self._tau, self.image = tau, image
        self.first: list[torch.Tensor] = []
        self.over: list[tuple[torch.Tensor, ...]] = []

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        if len(self.first) == site.layer:  # long prompts come in portions
            assert site.states is not None
            size = normalised(site.states[0]).cpu()
            self.first.append(size[0])
            self.over.append((size > self._tau).nonzero(as_tuple=True))
        return scores


def _look(adapter: Adapter, sample: Sample, tau: float) -> _Watch:
    """What one prompt makes of it."""
    prepared = adapter.prepare([sample])[0]
    with torch.inference_mode():
        batch = adapter.embed([prepared], [adapter.encode(prepared.pixels)])
        watch = _Watch(tau, batch.columns.image[0].cpu())
        with adapter.session(edits=[watch]) as session:
            session.columns = batch.columns
            adapter.decode(batch)
    return watch
