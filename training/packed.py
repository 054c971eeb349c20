"""Learners that pack one picture and all its questions into one sequence.

A sequence is one shared prefix (up to the token after the image) and segments of fixed length behind it. Each
segment (a question with its answer) sees the prefix and itself, and its positions count from the end of the prefix,
so it is exactly what the model meets at inference.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmattn.scenes.catalog import CATEGORIES
from training.batch import CAPTION, LONG, SHORT, Truth
from training.learner import WEIGHTS, Learner, text_loss
from training.processor import GRID
from training.tables import IGNORE, Lines, Tables

__all__ = ["PackedLearner"]


class PackedLearner(Learner):
    """For models whose image tokens stand in the prompt. ``grid_positions``: image tokens count rows and columns."""

    grid_positions = False

    def __init__(self, model: Any, tables: Tables) -> None:
        super().__init__(model, tables)
        width = model.config.text_config.hidden_size
        self.patches = nn.Linear(width, len(CATEGORIES) + 1)
        head = tables.prefix
        self.image_start, images = len(head) - 2, GRID * GRID
        self.start = self.image_start + images + 1
        lengths = [tables.short.length] * SHORT + [tables.long.length] * LONG
        lengths += [tables.where.length, tables.count.length, CAPTION]
        lengths[-1] += -(self.start + sum(lengths)) % 8  # the fast kernel wants a multiple of 8
        self.caption = lengths[-1]
        kinds = [0] * SHORT + [1] * LONG + [2, 3, 4]
        weight = [0.0] * self.start + [WEIGHTS[k] for k, n in zip(kinds, lengths, strict=True) for _ in range(n)]
        owner = [0] * self.start + [number for number, n in enumerate(lengths, 1) for _ in range(n)]
        self._constant("prefix", head[: self.image_start] + [head[-2]] * images + head[-1:])
        self._constant("weights", weight)
        place = self._places()
        after = [position for n in lengths for position in range(n)]
        tail = torch.tensor(after) + int(place[0, -1]) + 1
        self._constant("positions", torch.cat([place, tail.expand(3, -1)], 1))
        segment, order = torch.tensor(owner), torch.arange(len(owner))
        shared = (segment[:, None] == segment[None, :]) | (segment[None, :] == 0)
        self._constant("mask", (shared & (order[None, :] <= order[:, None]))[None, None])

    def _constant(self, name: str, value: Any) -> None:
        self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def _places(self) -> Tensor:
        """Positions (3, start) of the prefix: time, height, width."""
        if not self.grid_positions:
            return torch.arange(self.start).expand(3, -1)
        before = torch.arange(self.image_start).expand(3, -1)
        rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        grid = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1) + self.image_start
        return torch.cat([before, grid, torch.full((3, 1), self.image_start + GRID)], 1)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Projected features of the image tokens (B, 144, width) from (B, 3, 168, 168)."""

    @abstractmethod
    def states(self, embeddings: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Final hidden states (B, T, width) at positions (3, T) under a mask (1, 1, T, T)."""

    def inputs(self, parts: list[Lines], reply: Tensor, truth: Truth) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Packed tokens and labels, (B, T) each."""
        head = self.prefix.expand(len(reply), -1)
        ids = torch.cat([head, *(part.ids.flatten(1) for part in parts)], 1).clamp(min=0)
        labels = torch.cat([torch.full_like(head, IGNORE), *(part.labels().flatten(1) for part in parts)], 1)
        return ids, labels

    def forward(self, pixels: Tensor, patch_labels: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ids, labels = inputs
        embeddings, features = self._embed(pixels, ids)
        states = self.states(embeddings, self.positions, self.mask)[:, self.start - 1 : -1]
        text = text_loss(self.model.lm_head(states), labels[:, self.start :], self.weights[self.start :])
        guess = self.patches(features).float().flatten(0, 1)
        return text, functional.cross_entropy(guess, patch_labels.flatten(), ignore_index=IGNORE)

    def next_token(self, pixels: Tensor, ids: Tensor, last: Tensor) -> Tensor:
        ids = torch.cat([self.prefix.expand(len(ids), -1), ids.clamp(min=0)], 1)
        length = ids.shape[1]
        order = torch.arange(length, device=ids.device)
        tail = torch.arange(length - self.start, device=ids.device) + self.positions[0, self.start - 1] + 1
        positions = torch.cat([self.positions[:, : self.start], tail.expand(3, -1)], 1)
        states = self.states(self._embed(pixels, ids)[0], positions, (order[None] <= order[:, None])[None, None])
        scores: Tensor = self.model.lm_head(states[torch.arange(len(ids)), self.start + last])
        return scores.float()

    def _embed(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token embeddings with the image features in their place, and the features."""
        features = self.features(pixels)
        table = self.model.model.language_model.embed_tokens
        head, tail = ids[:, : self.image_start], ids[:, self.image_start + features.shape[1] :]
        return torch.cat([table(head), features.to(table.weight.dtype), table(tail)], 1), features
