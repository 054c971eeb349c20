"""Decoding on a GPU: one step, captured once as CUDA graphs and replayed for every token of every batch that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmattn.adapters import Adapter, Embedded, SharedCache
from mmattn.attention import Session
from mmattn.attention.compiling import compiling
from mmattn.decoding.fast.captured import CAPTURING, Prefills
from mmattn.decoding.fast.choosing import Greedy
from mmattn.decoding.fast.keeping import KeptRows
from mmattn.decoding.fast.parts import DecoderParts
from mmattn.decoding.fast.pool import COLUMNS, SLOTS, Rules, Size
from mmattn.decoding.fast.rewriting import Memory, Rewriting
from mmattn.decoding.fast.step import DecodeStep
from mmattn.decoding.progress import Progress
from mmattn.decoding.recorder import Capture

# Takes rows (B, layers, heads, N) that decide a token away, the number of which it hears, and that of the first layer
# among those that are kept; what it gives has happened when they may be overwritten.
Take = Callable[[int, torch.Tensor, int], torch.cuda.Event | None]


class Lane:
    """Buffers for at least `samples` samples of `slots` tokens, and the graphs that work on them.

    Attributes:
        branches: rows of each sample.
        rewriting: the method's edits.
        progress: the answers.
        kept: attention that is kept, to N keys of each sample; None where none is.
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
        self._prefills = Prefills(parts, self._keys, self._values, self.rewriting)
        exits = rules.method.exits(depth, adapter.tied)
        self.kept = _kept(rules.capture, depth, parts, size)
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
            kept=self.kept,
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
        self._greedy = None if rules.sampling.do_sample else Greedy(self.progress, self._step.logits.shape[1])
        self._taken: list[torch.cuda.Event | None] = [None, None]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        if parts.device.type == "cuda":
            self._flags = torch.zeros(2, dtype=torch.bool, pin_memory=True)
            self._watch = _stream()
            self._capture()

    def fits(self, rules: Rules, size: Size) -> bool:
        """Whether a batch may use this lane; much too large ones would waste time and memory."""
        return (
            rules == self.rules
            and size.samples <= self.size.samples < 2 * size.samples
            and size.slots <= self.size.slots <= max(2 * size.slots, SLOTS)
            and size.steps <= self.size.steps
            and size.columns <= self.size.columns <= max(2 * size.columns, COLUMNS)
        )

    @property
    def valid(self) -> bool:
        """Whether the model's weights still lie where they lay."""
        return self._pointers == self._parts.pointers()

    def cache(self, rows: int) -> SharedCache:
        """For the prefill of `rows` rows, straight into the lane's buffers."""
        return self._prefills.cache(rows)

    def load(self, cache: SharedCache) -> None:
        """Take over what a prefill in another cache left."""
        for mine, theirs in ((self._keys, cache.keys), (self._values, cache.values)):
            mine[:, : theirs.shape[1], :, : theirs.shape[3]] = theirs

    def prefill(self, adapter: Adapter, batch: Embedded, cache: SharedCache, session: Session) -> torch.Tensor:
        """`Adapter.decode` on prompts: hidden states (rows, D) of their last tokens."""
        return self._prefills.run(adapter, batch, cache, session)

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
        on_step: Callable[[int], None],
        take: Take | None = None,
    ) -> None:
        """Decode until every sample has ended, from the prefilled `batch` and the first tokens `chosen` (samples,).

        `memory` is what the edits kept, `steps` how long the longest answer may be, that first token included.
        `on_step` hears the number of each token after the step that made it was started.
        """
        self._start(batch, chosen)
        self.rewriting.start(batch.columns, memory)
        if not self._graphs:
            for number in range(1, steps):
                if bool(self.progress.finished):
                    return
                self._step_on(number, take)
                on_step(number)
            return
        # One step ahead of the host: the flag of a step is read while the next one runs.
        events = [_event() for _ in self._flags]
        for number in range(steps):
            mine, before = number % 2, (number + 1) % 2
            # On a stream of its own: behind rows on their way to the host, the next step would wait for it.
            self._watch.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._watch):
                self._flags[mine : mine + 1].copy_(self.progress.finished[None], non_blocking=True)
                events[mine].record()
            if number:
                events[before].synchronize()
                if self._flags[before]:
                    return
            if number + 1 < steps:
                self._step_on(number + 1, take)
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

    def _step_on(self, number: int, take: Take | None) -> None:
        """The step that makes token `number`, and its rows."""
        for piece in range(len(self._step.spans)):
            taken = self._taken[piece % 2]
            if taken is not None:
                taken.wait()
            if self._graphs:
                self._graphs[piece].replay()
            else:
                self._run(piece)
            if take is not None and self.kept is not None:
                first = sum(map(len, self.kept.pieces[:piece]))
                self._taken[piece % 2] = take(number, self.kept.of_piece(piece), first)

    def _run(self, piece: int) -> None:
        step = self._step
        step.piece(piece)
        if piece + 1 < len(step.spans):
            return
        step.end()
        logits = step.logits.view(self.size.samples, self.branches, -1)
        early = self._head(self._norm(step.left[:: self.branches])).float() if step.left.numel() else None
        scores = self.progress.joined(logits, early)
        if self._greedy:
            self._greedy.take(scores, step.tokens)
        else:
            step.tokens.copy_(self.progress.take(scores).repeat_interleave(self.branches))

    def _capture(self) -> None:
        pieces = range(len(self._step.spans))
        self.progress.start([], torch.zeros(0, 0))
        stream = torch.cuda.Stream(self._parts.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with compiling():
            with torch.cuda.stream(stream):
                for piece in pieces:
                    self._run(piece)  # compiles the kernels
                self._step.length.zero_()
                self.progress.start([], torch.zeros(0, 0))
            torch.cuda.current_stream().wait_stream(stream)
            pool = torch.cuda.graph_pool_handle()
            for piece in pieces:
                graph = torch.cuda.CUDAGraph()
                # Other threads may go on using the device.
                with CAPTURING, torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self._run(piece)
                self._graphs.append(graph)


def _kept(capture: Capture | None, depth: int, parts: DecoderParts, size: Size) -> KeptRows | None:
    """Room for what `capture` wants kept."""
    if capture is None or not size.columns:
        return None
    layers = range(depth) if capture.layers is None else sorted(capture.layers)
    heads = range(parts.heads) if capture.heads is None else capture.heads
    return KeptRows(layers, heads, parts.heads, size.samples, size.columns, parts.device)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
