"""Prefills of short prompts, captured once as CUDA graphs and replayed: the GPU no longer waits for Python.

Prompts are padded on their right to a few widths. That changes nothing in front of it, as each token looks back only;
the cache does not count what it writes there, so that the answer overwrites it, or nobody reads it.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from mmattn.adapters import Adapter, Embedded, SharedCache
from mmattn.attention import Columns, RowCapture, Session
from mmattn.attention.compiling import compiling
from mmattn.decoding.fast.asked import Asked
from mmattn.decoding.fast.parts import DecoderParts
from mmattn.decoding.fast.pool import COLUMNS, up
from mmattn.decoding.fast.prefill import Prompts, complete, prefill
from mmattn.decoding.fast.rewriting import Rewriting

# Widths, and numbers of rows that are edited, are multiples of these (of keys that are kept, of `COLUMNS`): so few
# graphs do.
WIDTH, ROWS = 64, 32
# Tokens of a batch; more of them keep the GPU busy while Python goes ahead.
TOKENS = 2048
# Of a lane; their inputs have memory of their own, all else they share.
GRAPHS = 4

# Rows, width, rows to be edited, keys to be kept, the layers read: what prefills that one graph does have in common.
Shape = tuple[int, int, int, int, tuple[int, ...] | None]

# One capture at a time in a process.
CAPTURING = threading.Lock()
# Graphs that could not be captured: the allocator goes on asking them about streams.
_BROKEN: list[torch.cuda.CUDAGraph] = []


class Captured:
    """A prefill over fixed buffers, those of `prompts`, which does what it was `asked`."""

    def __init__(self, prompts: Prompts, asked: Asked) -> None:
        self.asked = asked
        self._prompts = prompts
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hidden: torch.Tensor | None = None

    def load(self, prompts: Prompts) -> None:
        """Other prompts of this shape."""
        for mine, theirs in zip(self._prompts.inputs(), prompts.inputs(), strict=True):
            mine.copy_(theirs)

    def run(self) -> torch.Tensor:
        """Hidden states (B, hidden) of the last tokens, which the next run may overwrite, as all that was asked for."""
        if self._graph is not None and self._hidden is not None:
            self._graph.replay()
            return self._hidden
        self.asked.forget()
        return self._prompts.run()

    def capture(self, pool: Any, own: torch.cuda.Stream | None) -> None:
        """After a first run, by which all code is compiled, on a stream of its `own`; without one nothing is."""
        if own is None:
            return
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may go on using the device.
            with CAPTURING, torch.cuda.graph(graph, pool=pool, stream=own, capture_error_mode="thread_local"):
                hidden = self.run()
        except BaseException:
            # A capture that does not end well leaves its stream current, and the allocator in its pool.
            torch.cuda.set_stream(stream)
            _BROKEN.append(graph)
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(stream.device.index, pool)
            raise
        self._graph, self._hidden = graph, hidden


class Prefills:
    """How a lane over the buffers `keys` and `values` (L, rows, G, C, D) reads prompts."""

    def __init__(self, parts: DecoderParts, keys: torch.Tensor, values: torch.Tensor, rewriting: Rewriting) -> None:
        self._parts, self._keys, self._values, self._rewriting = parts, keys, values, rewriting
        self._own: weakref.ref[SharedCache] | None = None
        self._kept: dict[Shape, Captured] = {}  # the one used last at the end
        self._missed: Counter[Shape] = Counter()
        self._failed = False
        self._pool, self._stream = None, None
        if parts.device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
            # torch's own stream for this is of whichever device was first.
            self._stream = torch.cuda.Stream(parts.device)  # type: ignore[no-untyped-call]

    def cache(self, rows: int) -> SharedCache:
        """For `rows` rows, straight into the lane's buffers."""
        made = SharedCache(len(self._parts.layers), (self._keys[:, :rows], self._values[:, :rows]))
        self._own = weakref.ref(made)
        return made

    def run(self, adapter: Adapter, batch: Embedded, cache: SharedCache, session: Session) -> torch.Tensor:
        """`Adapter.decode` on prompts: hidden states (rows, D) of their last tokens."""
        added = adapter.added(batch.extra)
        rewriting = self._rewriting if session.edits else None
        whole = batch.mask.shape == batch.embeds.shape[:2] and bool(batch.mask.all())
        attention = adapter.attention_layers
        with compiling() if session.edits else nullcontext():
            if whole and not added and self._fits(batch, cache, session, rewriting):
                return self._fixed(attention, batch, cache, session, rewriting)
            return prefill(self._parts, attention, batch, added, cache, session, rewriting, whole=whole)

    def _fits(self, batch: Embedded, cache: SharedCache, session: Session, rewriting: Rewriting | None) -> bool:
        """Whether fixed buffers will do. They are of whoever has taken the lane, whose cache is known by that."""
        if self._failed or self._own is None or self._own() is not cache:
            return False
        rows, width, _ = batch.embeds.shape
        short = rows * up(width, WIDTH) <= TOKENS
        more = session.exits or session.memory or (session.capture and session.capture.columns is None)
        return short and not more and complete(Asked.of(session), rewriting)

    def _fixed(
        self,
        attention: Sequence[nn.Module],
        batch: Embedded,
        cache: SharedCache,
        session: Session,
        rewriting: Rewriting | None,
    ) -> torch.Tensor:
        """`run`, by a graph if there is one of this shape."""
        rows, width, _ = batch.embeds.shape
        padded = up(width, WIDTH)
        asked = _padded_asked(session, padded)
        buffers = cache.extend(batch.embeds.new_empty(rows, self._parts.groups, width, self._parts.dim))
        fresh = Prompts(self._parts, attention, _padded(batch, padded), buffers, asked, rewriting, end=width - 1)
        shape = _shape(rows, padded, asked)
        found = self._kept.pop(shape, None)
        if found is not None:
            self._kept[shape] = found
            found.load(fresh)
        captured = found or Captured(fresh, asked)
        hidden = captured.run()
        _hand_over(captured.asked, session, width, padded)
        if found is None:
            self._keep(shape, captured)
        return hidden

    def _keep(self, shape: Shape, captured: Captured) -> None:
        """For the next prompts of this shape: when one has come for the first, second, fourth, eighth time in vain, as
        where shapes are many they drive each other out.
        """
        self._missed[shape] += 1
        if self._missed[shape].bit_count() > 1:
            return
        try:
            captured.capture(self._pool, self._stream)
        except Exception as error:  # whatever a driver may say, out of memory too: these prompts have been read
            self._failed = True
            self._kept.clear()
            why = f"{type(error).__name__}: {error}"
            warnings.warn(f"Reading prompts step by step, without a captured graph: {why}", stacklevel=2)
            return
        self._kept[shape] = captured
        if len(self._kept) > GRAPHS:
            del self._kept[next(iter(self._kept))]


def _wider(one: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size), in memory of its own, from (B, fewer): the rest is 0."""
    wide = one.new_zeros(len(one), size)
    wide[:, : one.shape[1]] = one
    return wide


def _padded(batch: Embedded, width: int) -> Embedded:
    """The last token again and again: its numbers are as ordinary as the prompt's."""
    index = torch.arange(width, device=batch.embeds.device).clamp(max=batch.embeds.shape[1] - 1)
    mask, positions = _wider(batch.mask, width), batch.positions[..., index]
    return replace(batch, embeds=batch.embeds[:, index], mask=mask, positions=positions)


def _padded_asked(session: Session, width: int) -> Asked:
    """What a session asks, for prompts of this width, to be kept apart."""
    columns, capture = session.columns if session.edits else None, session.capture
    if columns is not None:
        rows = up(columns.rows.shape[1], ROWS)
        image, said, marked = columns.keys(partial(_wider, size=width))
        columns = Columns(
            image, _wider(columns.rows, rows), _wider(columns.valid, rows), columns.cross, said, marked
        )  # fmt: skip
    if capture is not None and capture.columns is not None:
        wanted = _wider(capture.columns, up(capture.columns.shape[1], COLUMNS))
        capture = RowCapture(capture.rows, wanted, capture.layers)
    return Asked(session.edits, session.branches, session.depth, columns, capture, {})


def _shape(rows: int, width: int, asked: Asked) -> Shape:
    edited = 0 if asked.columns is None else asked.columns.rows.shape[1]
    if asked.capture is None or asked.capture.columns is None:
        return rows, width, edited, 0, ()
    return rows, width, edited, asked.capture.columns.shape[1], asked.capture.layers


def _hand_over(asked: Asked, session: Session, width: int, padded: int) -> None:
    """What was kept and read, without what was padded."""

    def cut(one: torch.Tensor) -> torch.Tensor:
        return one[:, :width] if one.ndim > 1 and one.shape[1] == padded else one

    for place, kept in asked.memory.items():
        session.memory[place] = {name: cut(one) for name, one in kept.items()}
    read, given = session.capture, asked.capture
    if read is not None and read.columns is not None and given is not None:
        count = read.columns.shape[1]
        read.weights = {layer: one[..., :count] for layer, one in given.weights.items()}
        # A copy: it may still be on its way off the GPU when the next prompts are read.
        read.together = None if given.together is None else given.together[..., :count].clone()
