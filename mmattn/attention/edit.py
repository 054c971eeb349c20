"""What an attention edit is, and which rows and columns it works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Site:
    """Where an edit is at work: one layer, and the keys that hold image tokens.

    Attributes:
        layer, depth: decoder layer, counted from 0, and how many there are.
        image: (B, 1, 1, S) bool, True on keys that hold image tokens.
    """

    layer: int
    depth: int
    image: torch.Tensor


class Edit:
    """A change of attention at the text rows that come after a picture; every row of a decode step is one.

    A subclass overrides `scores`, `weights` or both. All edits' `scores` run first, then the softmax, then all edits'
    `weights`, in the order in which the edits were given. Edits must not depend on other samples of the batch.
    """

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        """Whether decoder layer `layer` of `depth` is edited."""
        return True

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:  # noqa: ARG002
        """Change pre-softmax scores (B, H, R, S) float32; hidden keys are -inf."""
        return scores

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:  # noqa: ARG002
        """Change post-softmax weights (B, H, R, S) float32; each row should go on summing to 1."""
        return weights


@dataclass(frozen=True)
class Columns:
    """Which keys hold image tokens, and which queries of the current call an edit may change.

    Attributes:
        image: (B, S) bool.
        rows: (B, R) indices of text rows after a picture in the current call; samples with fewer repeat one of theirs.
        valid: (B, R) bool, False where a sample has no such row.
        cross: the keys are an encoder's: they do not grow, and every query comes after them.
    """

    image: torch.Tensor
    rows: torch.Tensor
    valid: torch.Tensor
    cross: bool = False

    @classmethod
    def of_sequence(cls, image: torch.Tensor, queries: int | None = None) -> Columns:
        """For a call on the last `queries` tokens (default: all) of sequences with image tokens at `image` (B, S)."""
        after = ~image & (image.cumsum(-1) > 0)
        after = after[:, image.shape[1] - (queries or image.shape[1]) :]
        count = after.sum(-1)
        width = max(int(count.max()), 1)
        # A stable sort brings the rows to the front; those beyond a sample's count repeat its first.
        rows = after.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
        rows = torch.where(torch.arange(width, device=rows.device) < count[:, None], rows, rows[:, :1])
        return cls(image, rows, (count > 0)[:, None].expand_as(rows))

    @classmethod
    def of_encoder(cls, image: torch.Tensor, queries: int = 1) -> Columns:
        """For cross-attention to image tokens at `image` (B, S)."""
        return cls(image, *_all_rows(image, queries), cross=True)

    def next(self, queries: int = 1) -> Columns:
        """For the call on the `queries` text tokens that follow."""
        image = self.image if self.cross else torch.nn.functional.pad(self.image, (0, queries))
        return Columns(image, *_all_rows(image, queries), self.cross)

    def to(self, device: torch.device) -> Columns:
        return Columns(self.image.to(device), self.rows.to(device), self.valid.to(device), self.cross)

    def eligible(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether an edit may change `rows` (B, R): (B, R) bool."""
        same = (rows[:, :, None] == self.rows[:, None, :]) & self.valid[:, None, :]
        return same.any(-1)

    def site(self, layer: int, depth: int, keys: int) -> Site:
        """For a call with `keys` keys; those beyond the known ones (an unfilled static cache) hold no image."""
        image = torch.nn.functional.pad(self.image, (0, keys - self.image.shape[1]))
        return Site(layer, depth, image[:, None, None, :])


def _all_rows(image: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row of a call, valid in samples that have a picture."""
    rows = torch.arange(queries, device=image.device).expand(len(image), -1)
    return rows, image.any(-1, keepdim=True).expand_as(rows)
