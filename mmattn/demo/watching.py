"""Visual sinks, layer by layer, and what VAR would move: watched in one forward call that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from PIL import Image

import mmattn
from mmattn.attention import Edit, Site
from mmattn.decoding import VAR, Method
from mmattn.grounding import Attention


@dataclass(frozen=True, eq=False)
class Sinks:
    """What VAR sees in the prompt's last row; all layers are those of the plain model.

    L layers, H heads, N image tokens.

    Attributes:
        sizes: (L, N) the largest normalised hidden state of each image token, as it enters the layer.
        sinks: (L, N) bool, tokens that VAR takes for sinks.
        share: (L, H) attention on the picture.
        moved: (L, H) attention that VAR would move from sinks to the rest of the picture.
        read: where the tokens sit, to draw them.
    """

    sizes: torch.Tensor
    sinks: torch.Tensor
    share: torch.Tensor
    moved: torch.Tensor
    read: Attention


class Watch(Edit):
    """Asks another edit what it would do, writes it down, and leaves the weights as they are."""

    states: ClassVar[bool] = True

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:
        return self._edit.blank(rows, keys, heads, device)

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        self._edit.scores(scores, site)  # only looks
        return scores

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        image = site.image[0, 0, 0]
        plain = weights[0, :, -1]
        changed = self._edit.weights(weights, site)[0, :, -1] if self._edit.wants(site.layer, site.depth) else plain
        sinks = site.per_key(site.memory["sinks"])[0, 0, 0]
        assert site.states is not None
        states = site.states[0].float()
        sizes = (states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)).abs().amax(-1)
        kept = image[: len(sizes)]
        moved = (changed - plain).clamp(min=0).sum(-1)
        self.seen[site.layer] = sizes[kept].cpu(), sinks[image].cpu(), plain[:, image].sum(-1).cpu(), moved.cpu()
        return weights


@dataclass(frozen=True)
class Watching(Method):
    """Plain decoding under the eyes of a `Watch`."""

    watch: Watch = field(default_factory=lambda: Watch(Edit()))

    name: ClassVar[str] = "watching"

    def edits(self) -> tuple[Edit, ...]:
        return (self.watch,)


def sinks_of(model: mmattn.VLM, image: Image.Image, prompt: str, var: VAR) -> Sinks:
    """What `var` would do to the last token of the prompt.

    Raises:
        MmattnError: `var` is neutral, or the model's rows cannot be watched.
    """
    edits = var.edits()
    if not edits:
        raise mmattn.MmattnError("VAR with p = 1 moves nothing", "Choose p below 1.")
    watch = Watch(edits[0])
    read = model.attend(image, prompt, rows="last", method=Watching(watch))
    layers = [watch.seen[layer] for layer in range(read.depth)]
    sizes, sinks, share, moved = (torch.stack(one) for one in zip(*layers, strict=True))
    return Sinks(sizes, sinks, share, moved, read)
