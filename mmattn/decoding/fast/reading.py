"""Attention of prompts' last rows, read by the decode step's kernels when a prefill has run.

Shapes: B rows, L layers that are read, W = (H + 2 G) D features of a query, key and value side by side
(of which the last two stay empty here).
"""

from __future__ import annotations

from typing import Self

import torch

from mmattn.attention import RowCapture
from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.asked import Asked
from mmattn.decoding.fast.blocks import attention_blocks
from mmattn.decoding.fast.parts import DecoderParts
from mmattn.decoding.fast.step import NORMALISED, keep_rows

SPLITS = 4  # programs that share the keys of a row and head


class LastRows:
    """Fills `capture` from all layers' last queries at once: few launches, so that a short prompt does not wait."""

    def __init__(self, parts: DecoderParts, capture: RowCapture, mask: torch.Tensor, keys: torch.Tensor) -> None:
        """`mask` (B, S) says which of `keys` (all layers, B, G, C, D) may be seen, perhaps part of a longer batch's."""
        self._parts, self._capture, self._mask, self._keys = parts, capture, mask, keys
        wanted = [layer for layer in range(len(parts.layers)) if capture.wants(layer)]
        self._entry = {layer: entry for entry, layer in enumerate(wanted)}
        width = (parts.heads + 2 * parts.groups) * parts.dim
        self._queries = torch.empty(len(wanted), len(mask), width, device=mask.device, dtype=parts.dtype)
        # From the host before the prefill begins: later it would wait for it.
        apart = keys.stride(0) // keys.stride(1)
        owners = torch.tensor(wanted)[:, None] * apart + torch.arange(len(mask))
        self._owners = owners.int().to(mask.device)
        assert capture.columns is not None
        self._columns = capture.columns.to(mask.device).contiguous()

    @classmethod
    def of(cls, parts: DecoderParts, asked: Asked, mask: torch.Tensor, keys: torch.Tensor) -> Self | None:
        """A reader, where it can do what is asked."""
        return cls(parts, asked.capture, mask, keys) if asked.capture and cls.can(asked) else None

    @staticmethod
    def can(asked: Asked) -> bool:
        """Whether last rows that nobody edits are all that is to be read."""
        wanted = asked.capture
        if wanted is None or wanted.columns is None or not wanted.last:
            return False
        return not any(one.rewrites_rows for one in asked.edits)

    def inputs(self) -> list[torch.Tensor]:
        """What is of the prompts at hand."""
        return [self._mask, self._columns]

    def last(self, layer: int) -> torch.Tensor | None:
        """Where a layer's last queries, rotated, are to be written: (B, W); None if it is not read."""
        entry = self._entry.get(layer)
        return None if entry is None else self._queries[entry]

    def read(self) -> None:
        """When all layers have run."""
        parts, mask, keys, device = self._parts, self._mask, self._keys, self._mask.device
        layers, rows, _ = self._queries.shape
        slots = keys.shape[3]
        hidden = torch.ones(layers, rows, slots, dtype=torch.int8, device=device)
        hidden[:, :, : mask.shape[1]] = mask == 0
        begins = torch.zeros(layers * rows, dtype=torch.int32, device=device)  # padding is hidden
        length = torch.full((), mask.shape[1] - 1, dtype=torch.int32, device=device)
        scores = torch.empty(layers, rows, parts.heads, 1, slots, device=device)
        none = scores  # what only computing scores leaves alone
        kernels.attention[(layers * rows, parts.groups, SPLITS)](
            self._queries, keys, keys, hidden, scores, none, none, none, none, none, none, none, begins, length,
            self._owners, parts.scale, 1, 0, 0, H=parts.heads, G=parts.groups, D=parts.dim, C=slots, PARTS=SPLITS,
            HIDES=True, KEEP=False, WRITE=True, READ=False, MIX=False, OWNED=True, BLOCK_N=NORMALISED, TILES=0,
            **attention_blocks(parts, slots),
        )  # fmt: skip
        out = scores.new_empty(rows, layers, parts.heads, self._columns.shape[1])
        keep_rows(scores, torch.arange(parts.heads, device=device), self._columns, out, begins, length)
        self._capture.together = out.transpose(0, 1)[:, :, :, None]
