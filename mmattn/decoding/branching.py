"""The rows of a batch: every branch of every sample, with the pictures that it sees and what is hidden of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from mmattn.adapters import Adapter, Embedded, Pixels, Prepared, SharedCache, Shares
from mmattn.attention import RowCapture
from mmattn.decoding.fast import LANES
from mmattn.decoding.features import Features
from mmattn.decoding.prefix import Decode, by_modules, plan, prefill
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import stream

# Tokens of a batch up to which reading where the model looks may keep all keys and values, to be faster.
FEW = 4096


@dataclass(frozen=True)
class Cover:
    """Image tokens (image tokens,) bool that are hidden, or whose features are 0."""

    tokens: torch.Tensor
    zeroed: bool

    def zero(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        parts = torch.split(self.tokens, [len(one) for one in features])
        return [one.masked_fill(part.to(one.device)[:, None], 0) for one, part in zip(features, parts, strict=True)]


def covers_of(
    adapter: Adapter, requests: Sequence[Request], options: Options, features: Features
) -> list[Cover | None] | None:
    """What is covered in each row of the batch; None where nothing is in any."""
    branches = options.method.branches()
    if all(branch.hidden is None for branch in branches):
        return None
    found: list[Cover | None] = []
    for looks in _probe(adapter, requests, features, options):
        chosen = [Cover(branch.hidden(looks), branch.zeroed) if branch.hidden else None for branch in branches]
        found += [None, *chosen]
    return found


def _probe(
    adapter: Adapter, requests: Sequence[Request], features: Features, options: Options
) -> list[dict[str, torch.Tensor]]:
    """What the last token of each prompt looks at, under each probe: (layers, heads, image tokens) on the CPU.

    A prefill of the unedited model; what prompts about one picture begin with goes through it once, if they `share`.
    """
    names = ["plain", *requests[0].probes]
    rows = [(one, one.pixels) for request in requests for one in (request.prepared, *request.probes.values())]
    batch = embed(adapter, rows, features)
    counts = batch.columns.image.sum(-1).tolist()
    capture = RowCapture(torch.full((len(rows), 1), -1), batch.columns.places())
    shares = options.share and not batch.columns.cross
    prefixes = plan(rows, [False] * len(rows), ()) if shares else None
    fused = LANES.prefill(adapter) if options.fast else None
    cache = adapter.new_cache() if prefixes or (fused and batch.mask.numel() <= FEW) else None
    with adapter.session(capture) as session:
        decode: Decode = partial(fused, session=session) if fused else partial(by_modules, adapter)
        if not isinstance(cache, SharedCache):
            adapter.decode(batch)
        elif prefixes:
            prefill(adapter, batch, prefixes, cache, session, decode)
        else:
            decode(batch, cache)
    read = capture.stacked()[:, :, :, 0].cpu()
    looks = [read[:, row, :, :count] for row, count in enumerate(counts)]
    return [dict(zip(names, looks[at : at + len(names)], strict=True)) for at in range(0, len(looks), len(names))]


def embed(
    adapter: Adapter,
    rows: Sequence[tuple[Prepared, tuple[Pixels, ...]]],
    known: Features,
    shares: Shares | None = None,
    covers: Sequence[Cover | None] | None = None,
) -> Embedded:
    """One left-padded batch; equal pictures are encoded once."""
    encoded = known.of(adapter, {one.key: one for _, pixels in rows for one in pixels}, shares)
    features = [[encoded[one.key] for one in pixels] for _, pixels in rows]
    hidden: list[torch.Tensor | None] = [None] * len(rows)
    for row, cover in enumerate(covers or ()):
        if cover is not None and cover.zeroed:
            features[row] = cover.zero(features[row])
        elif cover is not None:
            hidden[row] = cover.tokens
    return adapter.embed([row for row, _ in rows], features, hidden)


def rows_of(
    request: Request, options: Options, made: dict[str, Pixels], known: Callable[[str], bool]
) -> Iterator[tuple[Prepared, tuple[Pixels, ...]]]:
    """The tokens and pictures of the plain branch and the others; changed pictures get keys of their own.

    `made` keeps them by these keys. Those whose features are `known` by these keys are not changed: nobody will look.
    """
    yield request.prepared, request.prepared.pixels
    branches = options.method.branches()
    others = request.others or (request.prepared,) * len(branches)
    for branch, prepared in zip(branches, others, strict=True):
        if branch.pixels is None:
            yield prepared, prepared.pixels
            continue
        # Draws by the picture, not the prompt: questions about one picture go on sharing what they begin with.
        names = request.sample.image_keys or tuple(one.key for one in prepared.pixels)
        changed = []
        for one, name in zip(prepared.pixels, names, strict=True):
            key = f"{one.key} {branch.name} {options.seed} {name}"
            if key not in made:
                generator = stream(options.seed, f"branch {branch.name}", name)
                values = one.values if known(key) else branch.pixels(one.values, generator)
                made[key] = replace(one, key=key, values=values)
            changed.append(made[key])
        yield prepared, tuple(changed)
