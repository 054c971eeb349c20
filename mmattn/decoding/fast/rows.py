"""Rows of a prompt that a method edits, by two kernels and the edit's own code, compiled, between them.

Through plain operations an edit takes 20 to 60 launches a layer, and a short prompt waits for Python.

Shapes: B rows of T tokens, R of them to be edited, S keys, H query heads, G key heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import triton

from mmattn.attention import Session, at_once, may_edit
from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.parts import DecoderParts
from mmattn.decoding.fast.rewriting import Rewriting, fill_places

BLOCK_R, BLOCK = 16, 64  # rows and keys of one program


@dataclass(frozen=True)
class _Portion:
    """Some of the rows: which (B, R) int32, whether they are written (B, R) int8, and what each edit may change."""

    rows: torch.Tensor
    mine: torch.Tensor
    may: tuple[torch.Tensor, ...]


class EditedRows:
    """A session's edits, in one prefill."""

    def __init__(self, parts: DecoderParts, session: Session, rewriting: Rewriting, mask: torch.Tensor, width: int):
        """`mask` (B, S) says which keys may be seen; the last `width` of them are the call's tokens."""
        self._session, self._rewriting, self._width, self._scale = session, rewriting, width, parts.scale
        self._last: dict[int, torch.Tensor] = {}
        self._cut: dict[str, Any] = {
            "H": parts.heads, "G": parts.groups, "D": parts.dim, "BLOCK_R": BLOCK_R, "BLOCK": BLOCK,
            "BLOCK_D": max(16, triton.next_power_of_2(parts.dim)),
        }  # fmt: skip
        columns = session.columns
        assert columns is not None
        self._hidden = (mask == 0).to(torch.int8)
        self._places = torch.zeros(3, *mask.shape, dtype=torch.bool, device=mask.device)
        fill_places(self._places, columns)
        self._columns = columns
        queries = len(mask) * width * parts.heads * parts.dim * parts.dtype.itemsize
        self._size = at_once(parts.heads * mask.numel(), queries)

    @cached_property
    def _every(self) -> list[_Portion]:
        """All rows that may be edited; behind them the last one, where it is read, whoever it belongs to."""
        every = self._choice(self._columns.rows)
        if self._session.capture is not None:
            rows, mine, *may = self._choice(self._last_row())
            every = [torch.cat(pair, 1) for pair in zip(every, (rows, torch.zeros_like(mine), *may), strict=True)]
        return self._portions(*every)

    @cached_property
    def _lone(self) -> list[_Portion]:
        """The last row alone."""
        return self._portions(*self._choice(self._last_row()))

    def _last_row(self) -> torch.Tensor:
        return torch.full_like(self._columns.rows[:, :1], self._width - 1)

    def _choice(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """`rows` (B, R), which of them are written, and which of them each edit may change, (B, R) bool."""
        columns, names, width = self._columns, self._session.branches, self._width
        # A row of padding sees nothing: its weights are no numbers, and the fast kernel's stay.
        shown = (self._hidden == 0).cumsum(-1) > 0
        mine = columns.eligible(rows) & shown.gather(1, rows + shown.shape[1] - width)
        return [rows, mine, *(may_edit(one, columns, names, rows, width) for one in self._session.edits)]

    def _portions(self, rows: torch.Tensor, mine: torch.Tensor, *may: torch.Tensor) -> list[_Portion]:
        size = self._size
        cuts = [slice(start, start + size) for start in range(0, rows.shape[1], size)]
        return [
            _Portion(
                rows[:, cut].int().contiguous(),
                mine[:, cut].to(torch.int8).contiguous(),
                tuple(one[:, None, cut, None] for one in may),
            )
            for cut in cuts
        ]

    @classmethod
    def of(
        cls, parts: DecoderParts, session: Session, rewriting: Rewriting, mask: torch.Tensor, width: int
    ) -> Self | None:
        """Where all that is edited are rows of text after a picture, and all that is read are last rows."""
        wide = any(one.views or one.every_row or one.rewrites_output or one.by_layer for one in session.edits)
        columns, asked = session.columns, session.capture
        if wide or not rewriting.layers or columns is None or columns.cross or (asked is not None and not asked.last):
            return None
        return cls(parts, session, rewriting, mask, width)

    def apply(
        self, layer: int, qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, states: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Put what the edited rows give into `out` (B, T, H, D), and note what is to be read.

        Args:
            qkv: (B T, (H + 2 G) D), rotated. keys, values: (B, G, C, D). states: (B, T, hidden) as they enter `layer`.
        """
        session = self._session
        read = session.capture is not None and session.capture.wants(layer)
        work = [one for one in session.edits if one.rewrites_rows and one.wants(layer, session.depth)]
        if not work and not read:
            return
        places = [edit.place(number, layer) for number, edit in enumerate(session.edits)]
        kept = [session.memory.setdefault(one, {}) for one in places]
        weights = states.new_empty(0)
        for one in self._lone if all(edit.last_row for edit in work) else self._every:
            samples, count = one.rows.shape
            sizes = (self._width, count, self._hidden.shape[1], keys.shape[2])
            scores = torch.empty(samples, self._cut["H"], count, sizes[2], device=qkv.device)
            grid = (samples * self._cut["H"], -(-count // BLOCK_R))
            kernels.row_scores[(*grid, -(-sizes[2] // BLOCK))](
                qkv, keys, one.rows, self._hidden, scores, self._scale, *sizes, **self._cut
            )
            if not work:  # only read
                weights = scores.softmax(-1)
                continue
            names = session.branches
            weights = self._rewriting.rewrite_rows(layer, scores, self._places, one.may, kept, states, names)
            weights = weights.contiguous()
            kernels.mix_rows[grid](weights, values, one.rows, one.mine, out, *sizes, **self._cut)
        if read:
            self._last[layer] = weights[:, :, -1:].clone()

    def finish(self) -> None:
        """After all layers: hand over what was read."""
        if self._session.capture is not None:
            self._session.capture.store_all(self._last)
