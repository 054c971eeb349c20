"""What several rows of a batch begin with goes through the decoder once.

Rows about one picture share everything up to where their words differ. The prefix of each such group is prefilled as a
row of a small batch, its keys and values are copied to all its rows, and a second call does the rows' last tokens. How
many these are is the same for all rows, so that the rest of the way is that of any left-padded batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers.cache_utils import Cache

from mmattn.adapters import Adapter, Embedded, Pixels, Prepared, SharedCache
from mmattn.attention import Columns, Edit, Session

# One decoder call: hidden states (B, D) of the last tokens; the cache grows.
Decode = Callable[[Embedded, Cache], torch.Tensor]
# Two calls in place of one must save at least this share of the tokens.
SAVING = 0.25


@dataclass(frozen=True)
class Prefixes:
    """How a batch is prefilled in two calls.

    Attributes:
        leaders: for each prefix, a row that begins with it. lengths: its tokens.
        owners: for each row, the number of its prefix.
        tail: how many of its last tokens each row does itself.
        sizes: tokens of each row, hidden ones included.
    """

    leaders: tuple[int, ...]
    lengths: tuple[int, ...]
    owners: tuple[int, ...]
    tail: int
    sizes: tuple[int, ...]


def by_modules(adapter: Adapter, batch: Embedded, cache: Cache) -> torch.Tensor:
    """A `Decode` by the model's own modules."""
    return adapter.decode(batch, cache)[:, -1]


def plan(
    rows: Sequence[tuple[Prepared, tuple[Pixels, ...]]], alone: Sequence[bool], edits: Sequence[Edit]
) -> Prefixes | None:
    """How rows of (prompt, pictures) can share prefixes; None where that saves little or an edit forbids it.

    Args:
        alone: rows that are like no other, whatever they hold.
        edits: of attention. Those that want more of a prompt than the rows they edit, its last row alone, its heads'
            output or certain branches need the whole prompt in one call.
    """
    if any(one.whole or one.last_row or one.rewrites_output or one.branches is not None for one in edits):
        return None
    sizes = [len(prepared.ids) for prepared, _ in rows]
    signs = [_signs(prepared) for prepared, _ in rows]
    groups: dict[object, list[int]] = {}
    for row, (prepared, pixels) in enumerate(rows):
        images = prepared.layout.images
        if not images or alone[row]:
            groups[row] = [row]
            continue
        end = max(one.tokens.stop for one in images)
        key = (tuple(one.key for one in pixels), tuple(signs[row][:end].tolist()))
        groups.setdefault(key, []).append(row)
    tail = 1
    for members in groups.values():
        tail = max(tail, *(sizes[row] - _common([signs[one] for one in members]) for row in members))
    # Words alone are short: they fit into the tail, or nothing is gained.
    tail = max([tail, *(sizes[row] for row, (one, _) in enumerate(rows) if not one.layout.images)])
    lengths = [max(0, *(sizes[row] - tail for row in members)) for members in groups.values()]
    chosen = [(members, length) for members, length in zip(groups.values(), lengths, strict=True) if length]
    if all(len(members) == 1 for members, _ in chosen):
        return None
    whole = len(rows) * max(sizes)
    if len(chosen) * max(lengths) + len(rows) * tail > (1 - SAVING) * whole:
        return None
    owners = [0] * len(rows)
    leaders = []
    for number, (members, _) in enumerate(chosen):
        leaders.append(max(members, key=lambda row: sizes[row]))
        for row in members:
            owners[row] = number
    return Prefixes(tuple(leaders), tuple(length for _, length in chosen), tuple(owners), tail, tuple(sizes))


def _signs(prepared: Prepared) -> torch.Tensor:
    """Equal where token and mark are: an edit may ask for both."""
    marked = torch.zeros_like(prepared.ids)
    marked[list(prepared.layout.marked)] = 1
    return 2 * prepared.ids + marked


def _common(several: Sequence[torch.Tensor]) -> int:
    """How many signs all begin with; at least one is left to each."""
    first = several[0]
    shared = min(map(len, several)) - 1
    for one in several[1:]:
        differs = (one[:shared] != first[:shared]).nonzero()
        shared = int(differs[0]) if len(differs) else shared
    return shared


def prefill(
    adapter: Adapter, batch: Embedded, prefixes: Prefixes, cache: SharedCache, session: Session, decode: Decode
) -> torch.Tensor:
    """Fill `cache` with `batch` by two calls of `decode`: hidden states (B, D) of the last tokens.

    `session` reads and edits as ever.
    """
    width, tail = batch.mask.shape[1], prefixes.tail
    device = batch.embeds.device
    rows = torch.tensor(prefixes.leaders, device=device)
    lengths = torch.tensor(prefixes.lengths, device=device)
    padding = width - torch.tensor(prefixes.sizes, device=device)
    front = adapter.span(batch, rows, padding[rows], lengths)
    asked, session.capture = session.capture, None
    session.columns = front.columns
    own = SharedCache(adapter.depth)
    decode(front, own)
    # What edits keep is of the whole prompt.
    session.restart()
    session.capture = asked
    longest = max(prefixes.lengths)
    spans = []
    for owner, before in zip(prefixes.owners, padding.tolist(), strict=True):
        count = max(width - tail - before, 0)
        spans.append((owner, longest - prefixes.lengths[owner], count))
    return resume(adapter, batch, own, spans, tail, cache, session, decode)


def resume(
    adapter: Adapter,
    batch: Embedded,
    own: SharedCache,
    spans: Sequence[tuple[int, int, int]],
    tail: int,
    cache: SharedCache,
    session: Session,
    decode: Decode,
) -> torch.Tensor:
    """Fill `cache` with `batch` by one call on the last `tail` tokens of its rows: hidden states (B, D) of the last.

    Args:
        own: holds what stands before them. spans: of which row of it, from where, how many tokens; see `adopt`.
    """
    width, device = batch.mask.shape[1], batch.embeds.device
    cache.adopt(own, spans, width - tail)
    every = torch.arange(len(batch.mask), device=device)
    end = adapter.span(batch, every, torch.full_like(every, width - tail), torch.full_like(every, tail))
    image, said, marked = batch.columns.keys(lambda one: one)
    session.columns = replace(Columns.of_sequence(image, tail), instruction=said, marked=marked)
    return decode(replace(end, mask=batch.mask), cache)
