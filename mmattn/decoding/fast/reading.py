"""Attention of prompts' last rows, read by the decode step's kernels while a prefill runs."""

from __future__ import annotations

from typing import Self

import torch

from mmattn.attention import RowCapture, Session
from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.parts import DecoderParts
from mmattn.decoding.fast.step import attention_blocks, keep_rows

SPLITS = 4  # programs that share the keys of a row and head


class LastRows:
    """Fills `capture` layer by layer, over a cache of `slots` slots of which `mask` (B, S) says what may be seen."""

    def __init__(self, parts: DecoderParts, capture: RowCapture, mask: torch.Tensor, slots: int) -> None:
        assert capture.columns is not None
        self._parts, self._capture, self._slots = parts, capture, slots
        device, rows = mask.device, len(mask)
        self._hidden = torch.ones(rows, slots, dtype=torch.int8, device=device)
        self._hidden[:, : mask.shape[1]] = mask == 0
        self._begins = (mask.cumsum(-1) == 0).sum(-1).int()
        self._length = torch.full((), mask.shape[1] - 1, dtype=torch.int32, device=device)
        self._scores = torch.full((1, rows, parts.heads, 1, slots), -torch.inf, device=device)
        self._columns = capture.columns.to(device).contiguous()
        self._heads = torch.arange(parts.heads, device=device)
        self._none = torch.zeros(1, dtype=torch.int8, device=device)

    @classmethod
    def of(cls, parts: DecoderParts, session: Session, mask: torch.Tensor, keys: torch.Tensor) -> Self | None:
        """A reader for a cache of `keys` (L, B, G, C, D), if last rows that nobody edits are all that is asked for."""
        asked = session.capture
        if asked is None or asked.columns is None or not asked.last or any(one.rewrites_rows for one in session.edits):
            return None
        return cls(parts, asked, mask, keys.shape[3])

    def read(self, layer: int, last: torch.Tensor, keys: torch.Tensor) -> None:
        """`last` (B, (H + 2 G) D): the last tokens' query, key and value, rotated; `keys` (B, G, C, D) of the layer."""
        if not self._capture.wants(layer):
            return
        parts, scores = self._parts, self._scores
        none = scores  # what only computing scores leaves alone
        kernels.attention[(len(last), parts.groups, SPLITS)](
            last.contiguous(), keys, keys, self._hidden, scores, none, none, none, none, self._begins, self._length,
            parts.scale, H=parts.heads, G=parts.groups, D=parts.dim, C=self._slots, PARTS=SPLITS, HIDES=True,
            WRITE=True, READ=False, MIX=False, **attention_blocks(parts, self._slots),
        )  # fmt: skip
        rows, columns = self._columns.shape
        out = scores.new_empty(1, rows, parts.heads, columns)
        keep_rows(scores, self._none, self._heads, self._columns, out)
        self._capture.weights[layer] = out[0, :, :, None]
