"""Decoding on a GPU: one step, captured once as a CUDA graph and replayed for every token of every batch that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmattn.adapters import Adapter, Embedded, SharedCache
from mmattn.attention import Session
from mmattn.attention.compiling import compiling
from mmattn.decoding.fast.parts import DecoderParts
from mmattn.decoding.fast.pool import COLUMNS, SLOTS, Rules, Size
from mmattn.decoding.fast.prefill import prefill
from mmattn.decoding.fast.rewriting import Memory, Rewriting
from mmattn.decoding.fast.step import DecodeStep
from mmattn.decoding.progress import Progress


class Lane:
    """Buffers for at least `samples` samples of `slots` tokens, and the graph that works on them.

    Attributes:
        branches: rows of each sample.
        rewriting: the method's edits.
        progress: the answers.
        rows: (layers, B, heads, N) attention of the plain branch on `columns`, of the step that ran last.
        columns: (B, N) slots of image tokens.
    """

    def __init__(self, adapter: Adapter, parts: DecoderParts, rules: Rules, size: Size) -> None:
        self.rules = rules
        self.size = size = size.rounded()
        self._parts, self._pointers = parts, parts.pointers()
        self.branches = len(rules.names)
        depth, rows = len(parts.layers), size.samples * self.branches
        shape = (depth, rows, parts.groups, size.slots, parts.dim)
        self._keys, self._values = (torch.empty(shape, device=parts.device, dtype=parts.dtype) for _ in range(2))
        edits = rules.method.edits()
        self.rewriting = Rewriting(edits, rules.names, depth, parts.heads, rows, size.slots, parts.device)
        kept, exits = rules.capture, rules.method.exits(depth, adapter.tied)
        self._step = DecodeStep(
            parts,
            self._keys,
            self._values,
            size.slots,
            hides=rules.hides,
            rewrite=self.rewriting.rewrite,
            rewritten=self.rewriting.layers,
            remix=self.rewriting.remix,
            remixed=self.rewriting.remixed,
            kept=() if kept is None else tuple(range(depth) if kept.layers is None else kept.layers),
            exits=exits.layers if exits else (),
        )
        # Modules, not the adapter: it would keep the model alive.
        self._norm = adapter.final_norm if exits and exits.normed else nn.Identity()
        self._head = adapter.model.get_output_embeddings()
        self.progress = Progress(
            size.samples,
            size.steps,
            rules.method,
            rules.sampling,
            tuple(rules.stop_ids),
            adapter.pad_token_id,
            parts.device,
        )
        self.columns = torch.zeros(size.samples, size.columns, dtype=torch.long, device=parts.device)
        heads = range(parts.heads) if kept is None or kept.heads is None else kept.heads
        self._heads = torch.tensor(list(heads), dtype=torch.long, device=parts.device)
        layers = 0 if kept is None else depth if kept.layers is None else len(kept.layers)
        self.rows = torch.empty(layers, size.samples, len(self._heads), size.columns, device=parts.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if parts.device.type == "cuda":
            self._flags = torch.zeros(2, dtype=torch.bool, pin_memory=True)
            self._capture()

    def fits(self, rules: Rules, size: Size) -> bool:
        """Whether a batch may use this lane; much too large ones would waste time and memory."""
        return (
            rules == self.rules
            and size.samples <= self.size.samples < 2 * size.samples
            and size.slots <= self.size.slots <= max(2 * size.slots, SLOTS)
            and size.steps <= self.size.steps
            and size.columns <= self.size.columns <= max(2 * size.columns, COLUMNS)
            and self._pointers == self._parts.pointers()
        )

    def cache(self, rows: int) -> SharedCache:
        """For the prefill of `rows` rows, straight into the lane's buffers."""
        return SharedCache(len(self._parts.layers), (self._keys[:, :rows], self._values[:, :rows]))

    def load(self, cache: SharedCache) -> None:
        """Take over what a prefill in another cache left."""
        for mine, theirs in ((self._keys, cache.keys), (self._values, cache.values)):
            mine[:, : theirs.shape[1], :, : theirs.shape[3]] = theirs

    def prefill(self, adapter: Adapter, batch: Embedded, cache: SharedCache, session: Session) -> torch.Tensor:
        """`Adapter.decode` on prompts: hidden states (rows, D) of their last tokens."""
        added = adapter.added(batch.extra)
        with compiling():
            return prefill(self._parts, adapter.attention_layers, batch, added, cache, session, self.rewriting)

    def padded(self, logits: torch.Tensor, early: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores (B, ..., V) of the prefill, and of its exits, with rows for samples that are not there."""
        missing = self.size.samples - len(logits)

        def more(scores: torch.Tensor) -> torch.Tensor:
            return torch.cat([scores, scores.new_zeros(missing, *scores.shape[1:])]) if missing else scores

        return more(logits), None if early is None else more(early)

    def finish(
        self,
        batch: Embedded,
        chosen: torch.Tensor,
        memory: Memory,
        steps: int,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Decode until every sample has ended, from the prefilled `batch` and the first tokens `chosen` (samples,).

        `memory` is what the edits kept, `steps` how long the longest answer may be, that first token included.
        `on_step` hears the number of each token after the step that made it was started.
        """
        self._start(batch, chosen)
        self.rewriting.start(batch.columns, memory)
        if self._graph is None:
            for number in range(1, steps):
                if bool(self.progress.finished):
                    return
                self._run()
                if on_step is not None:
                    on_step(number)
            return
        # One step ahead of the host: the flag of a step is read while the next one runs.
        events = [_event() for _ in self._flags]
        for number in range(steps):
            mine, before = number % 2, (number + 1) % 2
            self._flags[mine : mine + 1].copy_(self.progress.finished[None], non_blocking=True)
            events[mine].record()
            if number:
                events[before].synchronize()
                if self._flags[before]:
                    return
            if number + 1 < steps:
                self._graph.replay()
                if on_step is not None:
                    on_step(number + 1)

    def _start(self, batch: Embedded, chosen: torch.Tensor) -> None:
        step, rows, width = self._step, len(batch.mask), batch.mask.shape[1]
        step.reset()
        step.tokens.copy_(chosen.repeat_interleave(self.branches))
        step.length.fill_(width)
        step.begins.fill_(self.size.slots)  # rows without a sample read nothing
        step.begins[:rows] = (batch.mask.cumsum(-1) == 0).sum(-1).int()
        if self.rules.hides:
            step.hidden.zero_()
            step.hidden[:rows, :width] = batch.mask == 0
        positions = batch.positions[0] if batch.positions.ndim == 3 else batch.positions
        step.positions.zero_()
        step.positions[:rows] = (positions[:, -1] + 1).int()

    def _run(self) -> None:
        self._step.run()
        if self.rows.numel():
            self._step.keep(self._heads, self.columns, self.rows)
        logits = self._step.logits.view(self.size.samples, self.branches, -1)
        early = self._head(self._norm(self._step.left[:: self.branches])).float() if self._step.left.numel() else None
        chosen = self.progress.advance(logits, early)
        self._step.tokens.copy_(chosen.repeat_interleave(self.branches))

    def _capture(self) -> None:
        self.progress.start([], torch.zeros(0, 0))
        stream = _stream()
        stream.wait_stream(torch.cuda.current_stream())
        with compiling(), torch.cuda.stream(stream):
            self._run()  # compiles the kernels
            self._step.length.zero_()
            self.progress.start([], torch.zeros(0, 0))
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device.
        with compiling(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._run()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
