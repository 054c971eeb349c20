"""Where a decode step leaves the attention that is kept of it.

Shapes: B samples, H heads, N slots of the cache that follow each other, whose attention is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Bytes of the rows that lie together, before they are taken away.
PIECE = 24 << 20


class KeptRows:
    """Attention of some layers and heads, of each sample's first row.

    The layers come in pieces, which take turns with two buffers: the rows of one are taken away while the next ones
    come, and memory does not depend on how many layers there are.

    Attributes:
        pieces: the layers of each piece, ascending.
        heads: those that are kept, (some,).
        place_of: (H,) int32, a head's place among those that are kept; -1 for none.
        starts: (B,) int32, the first slot that is kept. columns: (B, N) all of them.
        rows: (2, B, layers of a piece, heads that are kept, N) float32.
    """

    def __init__(
        self,
        layers: Sequence[int],
        heads: Sequence[int],
        every: int,
        samples: int,
        count: int,
        device: torch.device,
    ) -> None:
        """`every` is H, `samples` B and `count` N."""
        size = _at_once(len(layers), 4 * samples * len(heads) * count)
        self.pieces = [tuple(layers[first : first + size]) for first in range(0, len(layers), size)]
        self.heads = torch.tensor(list(heads), device=device)
        self.place_of = torch.full((every,), -1, dtype=torch.int32, device=device)
        self.place_of[self.heads] = torch.arange(len(heads), dtype=torch.int32, device=device)
        self.starts = torch.zeros(samples, dtype=torch.int32, device=device)
        self.columns = torch.zeros(samples, count, dtype=torch.int32, device=device)
        self.rows = torch.zeros(2, samples, size, len(heads), count, device=device)
        numbered = [(at % 2, piece) for at, piece in enumerate(self.pieces)]
        self._where = {layer: (turn, place) for turn, piece in numbered for place, layer in enumerate(piece)}

    def start(self, starts: torch.Tensor) -> None:
        """Before a batch of B samples or fewer, whose slots to keep begin at `starts`."""
        self.starts[: len(starts)] = starts
        torch.add(self.starts[:, None], torch.arange(self.columns.shape[1], device=starts.device), out=self.columns)

    def of_layer(self, layer: int) -> torch.Tensor | None:
        """Where a layer's rows belong, (B, heads that are kept, N); None if it is not kept."""
        where = self._where.get(layer)
        return None if where is None else self.rows[where[0], :, where[1]]

    def of_piece(self, piece: int) -> torch.Tensor:
        """The rows of a piece, (B, its layers, heads that are kept, N)."""
        return self.rows[piece % 2, :, : len(self.pieces[piece])]


def _at_once(layers: int, size: int) -> int:
    """Of how many layers, of so many bytes each, the rows lie together; in two pieces at least, if they can be."""
    return max(1, min(PIECE // max(size, 1), -(-layers // 2)))
