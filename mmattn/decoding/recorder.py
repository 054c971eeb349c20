"""Attention of generated tokens, read while they are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mmattn.adapters import Adapter, Embedded, Prepared, SharedCache, Shares
from mmattn.attention import RowCapture, Session
from mmattn.checks import whole
from mmattn.errors import MmattnError
from mmattn.grounding.attention import Attention

# For how many tokens' rows room is made: first, and at the most; each time twice as many, as answers go on.
FIRST, MOST = 8, 64


@dataclass(frozen=True)
class Capture:
    """What `generate(capture=...)` keeps of the attention on image tokens.

    Attributes:
        layers: decoder layers, in this order; None for all. Negative ones count from the end.
        heads: heads of each layer; None for all.
        tokens: which generated tokens, counted from 0; None for all.
        device: where the rows are kept: "cpu" takes them off the GPU as they come, None leaves them where they are.
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    device: str | None = "cpu"

    def resolved(self, depth: int, heads: int) -> Capture:
        """With numbers checked and counted from 0.

        Raises:
            MmattnError: a layer or head that the model does not have, or nothing chosen.
        """
        tokens = None if self.tokens is None else tuple(whole("A token of capture", one, 0) for one in self.tokens)
        if tokens == ():
            raise MmattnError("No token is chosen for capture", "Leave tokens=None for all.")
        tokens = tokens and tuple(dict.fromkeys(tokens))
        return Capture(_picked("layer", self.layers, depth), _picked("head", self.heads, heads), tokens, self.device)


def _picked(what: str, chosen: Sequence[int] | None, size: int) -> tuple[int, ...] | None:
    if chosen is None:
        return None
    picked = tuple(dict.fromkeys(whole(f"A {what} of capture", one, -size, size - 1) % size for one in chosen))
    if not picked:
        raise MmattnError(f"No {what} is chosen for capture", f"Leave {what}s=None for all.")
    return picked


class Recorder:
    """Collects rows of the plain branch, step by step.

    Args:
        branches: K; the plain one is the first of each K rows.
        steps: tokens that may be generated.

    Attributes:
        starts: (B K,) int32, key of each row's first image token, 0 without one.
        columns: (B K, N) keys from there to the last one; `rows_of` leaves out those of other tokens between, and what
            stands behind a picture that is smaller than the batch's largest.
        width: for how many keys there is room: N, or more where a lane's rows are wider.
        taken: numbers of the tokens whose rows are kept.
    """

    def __init__(self, capture: Capture, adapter: Adapter, batch: Embedded, branches: int, steps: int) -> None:
        self._capture, self._adapter, self._branches = capture, adapter, branches
        device, places = batch.columns.image.device, [row.nonzero()[:, 0] for row in batch.columns.image.cpu()]
        starts = torch.tensor([int(row[0]) if len(row) else 0 for row in places])
        # Of each sample, which of its keys hold image tokens.
        self._inside = [row - start for row, start in zip(places[::branches], starts[::branches], strict=True)]
        self.width = max(_span(row) for row in self._inside)
        last = batch.columns.image.shape[1] - 1
        self.columns = (starts[:, None] + torch.arange(self.width)).clamp(max=last).to(device)
        self.starts = starts.int().to(device)
        tokens = range(steps) if capture.tokens is None else capture.tokens
        self._most = sum(one < steps for one in tokens)
        self._layers = tuple(range(adapter.depth) if capture.layers is None else capture.layers)
        # Of each sample, one after the other: (steps, layers as they come, heads, N), filled step by step.
        self._parts: list[list[torch.Tensor]] = [[] for _ in self._inside]
        self._room = 0
        self._side: torch.cuda.Stream | None = None
        self.taken: list[int] = []

    def before(self, session: Session, step: int, cache: object) -> None:
        """Ask for the rows of generated token number `step`, if it is a wanted one."""
        tokens = self._capture.tokens
        session.capture = None
        if (tokens is None or step in tokens) and self.columns.shape[1]:
            rows = torch.full((len(self.columns), 1), -1)
            # All layers at once at the end, or each in its turn where some may be edited.
            later = step > 0 and isinstance(cache, SharedCache) and not any(one.rewrites_rows for one in session.edits)
            session.capture = RowCapture(rows, self.columns, tuple(sorted(self._layers)), postpone=later)

    def after(self, session: Session, step: int, cache: object) -> None:
        """Keep what was read."""
        read = session.capture
        if read is None:
            return
        postponed = cache if read.queries and isinstance(cache, SharedCache) else None
        rows = read.stacked() if postponed is None else read.read_postponed(postponed.keys)
        rows = rows[:, :: self._branches, :, 0].transpose(0, 1)
        if self._capture.heads is not None:
            rows = rows[:, :, list(self._capture.heads)]
        if rows.shape[-1] < self.width:
            rows = torch.nn.functional.pad(rows, (0, self.width - rows.shape[-1]))
        self.take(step, rows.contiguous())

    def take(self, step: int, rows: torch.Tensor, first: int = 0) -> torch.cuda.Event | None:
        """Keep `rows` (B, layers, heads, N), those of further layers where `first` is not 0, if they are wanted.

        A step too many, begun before the last one was known to be the last, is not. The rows may be overwritten once
        what comes back has happened, or by what comes next on the stream where nothing does.
        """
        wanted = self._capture.tokens is None or step in self._capture.tokens
        if first == 0 and wanted and len(self.taken) < self._most:
            if len(self.taken) == self._room:
                self._more(rows)
            self.taken.append(step)
        if not self.taken or self.taken[-1] != step:
            return None
        place = len(self.taken) - 1 - self._room
        mine = [parts[-1][place, first : first + rows.shape[1]] for parts in self._parts]
        if mine[0].is_pinned():
            return self._on_the_side(rows, mine)
        torch._foreach_copy_(mine, list(rows))  # in one launch
        return None

    def _more(self, rows: torch.Tensor) -> None:
        """Room for further steps."""
        steps = min(max(self._room, FIRST), MOST, self._most - self._room)
        self._room += steps
        size = (steps, len(self._layers), *rows.shape[2:])
        device = rows.device if self._capture.device is None else torch.device(self._capture.device)
        pinned = rows.is_cuda and device.type == "cpu"
        for parts in self._parts:
            parts.append(torch.empty(size, dtype=rows.dtype, device=device, pin_memory=pinned))

    def _on_the_side(self, rows: torch.Tensor, out: Sequence[torch.Tensor]) -> torch.cuda.Event:
        """Off the GPU while it goes on."""
        if self._side is None:
            self._side = torch.cuda.Stream(rows.device)  # type: ignore[no-untyped-call]
        self._side.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(self._side):
            for mine, theirs in zip(out, rows, strict=True):
                mine.copy_(theirs, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        rows.record_stream(self._side)  # whose lane may be gone before the rows are
        return done

    def keep(self, rows: torch.Tensor, branches: int) -> None:
        """Go on with these rows of the batch, `branches` of each sample."""
        self.columns, self.starts, self._branches = self.columns[rows], self.starts[rows], branches

    def attention(
        self, prepared: Sequence[Prepared], answers: Sequence[Sequence[int]], shares: Shares
    ) -> list[Attention]:
        """One `Attention` per sample; rows of tokens after a sample's end are dropped."""
        if self._side is not None:
            self._side.synchronize()
        depth = self._adapter.depth
        word = self._adapter.word
        read = []
        for index, (sample, answer) in enumerate(zip(prepared, answers, strict=True)):
            steps = [step for step in self.taken if step < len(answer)]
            first = sample.layout.prompt_length - 1
            asked = [int(sample.ids[first]), *answer]
            read.append(
                Attention(
                    self.rows_of(index, len(steps)),
                    sample.layout,
                    tuple(first + step for step in steps),
                    tuple(word(asked[step]) for step in steps),
                    self._layers,
                    depth,
                    tuple(shares.get(one.key) for one in sample.pixels),
                    tuple(word(answer[step]) for step in steps),
                )
            )
        return read

    def rows_of(self, sample: int, steps: int) -> Callable[[], torch.Tensor]:
        """What gives (layers, heads, steps, image tokens) of one sample's first `steps` tokens taken.

        It is handed out, so that it can be asked for once; and put together by who wants to see it, since in memory of
        the host that takes longer than taking the rows.
        """
        parts, self._parts[sample] = self._parts[sample], []
        inside = self._inside[sample]
        mine: list[torch.Tensor] = []
        for part in parts:
            if mine and steps <= 0:
                break  # only longer answers of the batch have filled what follows
            mine.append(part[:steps, ..., : _span(inside)])
            steps -= len(part)
        order = sorted(self._layers)
        return partial(_together, mine, [order.index(layer) for layer in self._layers], inside)


def _span(places: torch.Tensor) -> int:
    """From the first key to the last of ascending `places`, which count from 0."""
    return int(places[-1]) + 1 if len(places) else 0


def _together(parts: Sequence[torch.Tensor], layers: Sequence[int], inside: torch.Tensor) -> torch.Tensor:
    """(layers, heads, steps, image tokens) in an order of layers, from parts (some steps, layers, heads, N) of which
    the keys `inside` are wanted.
    """
    if not parts:
        return torch.zeros(0, 0, 0, 0)
    rows = torch.cat(list(parts)).permute(1, 2, 0, 3)
    if len(inside) < rows.shape[-1]:
        rows = rows[..., inside.to(rows.device)]
    return rows.contiguous() if sorted(layers) == list(layers) else rows[list(layers)].contiguous()
