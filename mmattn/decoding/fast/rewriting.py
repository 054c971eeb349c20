"""A method's edits of attention inside the captured step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmattn.attention import Columns, Edit, Site, rewritten


class Rewriting:
    """Turns a layer's scores into the weights that the edits want, over fixed buffers.

    Attributes:
        layers: those that an edit wants.
    """

    def __init__(self, edits: Sequence[Edit], depth: int, rows: int, slots: int, device: torch.device) -> None:
        self._edits, self._depth = tuple(edits), depth
        self.layers = frozenset(layer for layer in range(depth) if any(one.wants(layer, depth) for one in edits))
        self._image, self._said = (torch.zeros(rows, slots, dtype=torch.bool, device=device) for _ in range(2))
        # Edits are chains of small operations: compiled, each layer's is a kernel or two.
        self._rewrite = torch.compile(self._plain) if device.type == "cuda" else self._plain

    def start(self, columns: Columns) -> None:
        """Before a batch (rows or fewer) whose prompts hold image tokens and the user's words at `columns`."""
        for mine, theirs in ((self._image, columns.image), (self._said, columns.instruction)):
            mine.zero_()
            if theirs is not None:
                mine[: len(theirs), : theirs.shape[1]] = theirs

    def __call__(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        return self._rewrite(layer, scores, self._image, self._said)

    def _plain(self, layer: int, scores: torch.Tensor, image: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        site = Site(layer, self._depth, image[:, None, None, :], said[:, None, None, :])
        where = image.any(-1)[:, None, None, None]
        return rewritten(scores, [(edit, site, where) for edit in self._edits if edit.wants(layer, self._depth)])
