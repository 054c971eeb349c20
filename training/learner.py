"""What the training loop asks of a model, and how much each kind of question counts."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.batch import LONG, SHORT, Truth
from training.tables import Lines, Tables

__all__ = ["Learner", "preprocess", "text_loss"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

# Loss weight of an answer's tokens: yes/no, where, how many and caption count about 1, 0.5, 0.25 and 1 in all.
WEIGHTS = (1 / (SHORT + LONG), 1 / (SHORT + LONG), 0.1, 0.12, 1 / 25)


def preprocess(pictures: Tensor) -> Tensor:
    """What the image processors do, on the device: (B, 3, 336, 336) uint8 -> (B, 3, 168, 168) normalised."""
    small = functional.interpolate(pictures.float(), size=(168, 168), mode="bicubic", antialias=True)
    mean = torch.tensor(_MEAN, device=pictures.device)[:, None, None]
    std = torch.tensor(_STD, device=pictures.device)[:, None, None]
    return (small.clamp(0, 255).round() / 255 - mean) / std


def text_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Summed token losses of (B, T, V), each position (T,) with its weight, divided by B."""
    each = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return (each.view_as(labels) * weights).sum() / len(labels)


class Learner(nn.Module, ABC):
    """A stock model with throw-away heads; computes the training losses of a batch.

    ``caption``: cells that a caption takes.
    """

    caption: int

    def __init__(self, model: Any, tables: Tables) -> None:
        super().__init__()
        self.model, self.tables = model, tables

    @abstractmethod
    def inputs(self, parts: list[Lines], reply: Tensor, truth: Truth) -> tuple[Tensor, ...]:
        """What `forward` takes besides pixels and patch labels."""

    @abstractmethod
    def forward(self, pixels: Tensor, patch_labels: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Text loss and auxiliary loss."""

    @abstractmethod
    def next_token(self, pixels: Tensor, ids: Tensor, last: Tensor) -> Tensor:
        """Scores (B, V) of the token after cell `last` (B,) of one question (B, cells) per picture."""
