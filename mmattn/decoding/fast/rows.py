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

from mmattn.attention import Edit, at_once, may_edit
from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.asked import Asked
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

    def __init__(
        self, parts: DecoderParts, asked: Asked, rewriting: Rewriting, mask: torch.Tensor, width: int, end: int
    ) -> None:
        """`mask` (B, S) says which keys may be seen; the last `width` of them are the call's tokens, and number `end`
        of these is a prompt's last.
        """
        self._asked, self._rewriting, self._width, self._end, self._scale = asked, rewriting, width, end, parts.scale
        self._last: dict[int, torch.Tensor] = {}
        self._cut: dict[str, Any] = {
            "H": parts.heads, "G": parts.groups, "D": parts.dim, "BLOCK_R": BLOCK_R, "BLOCK": BLOCK,
            "BLOCK_D": max(16, triton.next_power_of_2(parts.dim)),
        }  # fmt: skip
        columns = asked.columns
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
        if self._asked.capture is not None:
            rows, mine, *may = self._choice(self._last_row())
            every = [torch.cat(pair, 1) for pair in zip(every, (rows, torch.zeros_like(mine), *may), strict=True)]
        return self._portions(*every)

    @cached_property
    def _lone(self) -> list[_Portion]:
        """The last row alone."""
        return self._portions(*self._choice(self._last_row()))

    def _last_row(self) -> torch.Tensor:
        return torch.full_like(self._columns.rows[:, :1], self._end)

    def _choice(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """`rows` (B, R), which of them are written, and which of them each edit may change, (B, R) bool."""
        columns, names, width = self._columns, self._asked.branches, self._width
        # A row of padding sees nothing: its weights are no numbers, and the fast kernel's stay.
        shown = (self._hidden == 0).cumsum(-1) > 0
        mine = columns.eligible(rows) & shown.gather(1, rows + shown.shape[1] - width)
        return [rows, mine, *(may_edit(one, columns, names, rows, self._end + 1) for one in self._asked.edits)]

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
        cls, parts: DecoderParts, asked: Asked, rewriting: Rewriting, mask: torch.Tensor, width: int, end: int
    ) -> Self | None:
        """An editor, where it can do what is asked."""
        return cls(parts, asked, rewriting, mask, width, end) if cls.can(asked, rewriting) else None

    @staticmethod
    def can(asked: Asked, rewriting: Rewriting) -> bool:
        """Whether all that is edited are rows of text after a picture, and all that is read are last rows."""
        wide = any(one.views or one.every_row or one.rewrites_output or one.by_layer for one in asked.edits)
        columns, read = asked.columns, asked.capture
        return not (
            wide or not rewriting.layers or columns is None or columns.cross or (read is not None and not read.last)
        )

    def inputs(self) -> list[torch.Tensor]:
        """What is of the prompts at hand."""
        found, capture = [self._hidden, self._places], self._asked.capture
        used = {id(one): one for layer in range(self._asked.depth) for one in self._work(layer)[1]}
        for one in used.values():
            found += [one.rows, one.mine, *one.may]
        return found if capture is None or capture.columns is None else [*found, capture.columns]

    def _work(self, layer: int) -> tuple[list[Edit], list[_Portion]]:
        """The edits of a layer's rows, and the rows that they or a reader want."""
        asked = self._asked
        work = [one for one in asked.edits if one.rewrites_rows and one.wants(layer, asked.depth)]
        if not work and (asked.capture is None or not asked.capture.wants(layer)):
            return work, []
        return work, self._lone if all(edit.last_row for edit in work) else self._every

    def apply(
        self, layer: int, qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, states: torch.Tensor,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Put what the edited rows give into `out` (B, T, H, D), and note what is to be read.

        Args:
            qkv: (B T, (H + 2 G) D), rotated. keys, values: (B, G, C, D). states: (B, T, hidden) as they enter `layer`.
        """
        asked = self._asked
        work, portions = self._work(layer)
        if not portions:
            return
        places = [edit.place(number, layer) for number, edit in enumerate(asked.edits)]
        kept = [asked.memory.setdefault(one, {}) for one in places]
        weights = states.new_empty(0)
        for one in portions:
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
            names = asked.branches
            weights = self._rewriting.rewrite_rows(layer, scores, self._places, one.may, kept, states, names)
            weights = weights.contiguous()
            kernels.mix_rows[grid](weights, values, one.rows, one.mine, out, *sizes, **self._cut)
        if asked.capture is not None and asked.capture.wants(layer):
            self._last[layer] = weights[:, :, -1:].clone()

    def finish(self) -> None:
        """After all layers: hand over what was read."""
        if self._asked.capture is not None:
            self._asked.capture.store_all(self._last)
