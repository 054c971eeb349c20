"""Batched decoding: every branch of every sample is a row of one batch, and each step is one decoder call.

B samples, K branches of the method, V vocabulary; rows are ordered sample by sample: row = b * K + k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from transformers.cache_utils import Cache

from mmattn.adapters import Adapter, Embedded, Pixels, SharedCache, Shares
from mmattn.attention import Session
from mmattn.decoding.branching import covers_of, embed, rows_of
from mmattn.decoding.exits import exit_scores, exits_of
from mmattn.decoding.fast import LANES, Rules, Size
from mmattn.decoding.features import Features
from mmattn.decoding.listener import Listener, OnToken
from mmattn.decoding.marks import mark
from mmattn.decoding.method import Method, Step
from mmattn.decoding.prefix import Decode, Prefixes, by_modules, plan, prefill
from mmattn.decoding.progress import Progress
from mmattn.decoding.recorder import Recorder
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import stream
from mmattn.errors import MmattnError, is_out_of_memory
from mmattn.grounding.attention import Attention

if TYPE_CHECKING:
    from mmattn.decoding.fast.lane import Lane


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: without special tokens, stripped.
        token_ids: as generated, the stop token excluded.
        finish_reason: "stop" at a stop token, "length" at max_new_tokens.
        attention: with `capture`, the rows that decided the captured tokens.
        stop_token: the stop token, if there was one.
        scores: with `scores`, what each of those tokens had when the first token was chosen.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    attention: Attention | None = field(default=None, compare=False, repr=False)
    stop_token: int | None = field(default=None, compare=False, repr=False)
    scores: Mapping[str | int, float] | None = field(default=None, compare=False)


def run(
    adapter: Adapter,
    requests: Sequence[Request],
    options: Options,
    batch_size: int,
    on_done: Callable[[int], None] = lambda _: None,
    features: Features | None = None,
    on_token: OnToken | None = None,
    on_prefill: Callable[[], None] = lambda: None,
) -> list[Generation]:
    """Decode requests in batches of at most `batch_size`; results come in the order of the requests.

    Requests about the same pictures stand together, and those of similar length, so that little is computed twice or
    padded. A batch that runs out of memory is halved and tried again; finished ones are kept. `on_done` hears how many
    answers each batch finished. `features` may bring vision features along. `on_token` hears each token as it is
    chosen, with the number of its request; those of a batch that is tried again come again. `on_prefill` is called
    when a batch's prompts have been read and its first tokens chosen, as far as the host is concerned.

    Raises:
        MmattnError: a single sample does not fit into memory, or the model's scores are not numbers.
    """
    features = features or Features()
    order = _order(requests)
    done: dict[int, Generation] = {}
    waiting = [order[start : start + batch_size] for start in range(0, len(order), batch_size)][::-1]
    while waiting:
        chunk = waiting.pop()
        mine = [requests[index] for index in chunk]
        rooms = [one.room for one in mine]
        listener = Listener(on_token, chunk, rooms, options.stop_ids, on_prefill)
        try:
            with current(adapter.device):
                answers = _decode_batch(adapter, mine, options, features, listener)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            LANES.clear(adapter)
            features.clear()
            if len(chunk) == 1:
                raise MmattnError(
                    "Out of memory with a single sample", "Use a smaller dtype, fewer pictures, or device_map."
                ) from error
            middle = len(chunk) // 2
            waiting += [chunk[middle:], chunk[:middle]]
            continue
        done.update(zip(chunk, answers, strict=True))
        on_done(len(chunk))
    return [done[index] for index in range(len(requests))]


def current(device: torch.device) -> AbstractContextManager[object]:
    """In it, kernels of our own run on `device`; torch's find their way by themselves."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _order(requests: Sequence[Request]) -> list[int]:
    """By length, those about the same pictures together."""
    pictures = [tuple(one.key for one in request.prepared.pixels) for request in requests]
    sizes = [len(request.prepared.ids) for request in requests]
    longest: dict[tuple[str, ...], int] = {}
    for key, size in zip(pictures, sizes, strict=True):
        longest[key] = max(size, longest.get(key, 0))

    def place(index: int) -> tuple[int, tuple[str, ...], int]:
        key = pictures[index]
        return (longest[key] if key else sizes[index], key, sizes[index])

    return sorted(range(len(requests)), key=place)


@torch.inference_mode()
def _decode_batch(
    adapter: Adapter,
    requests: Sequence[Request],
    options: Options,
    features: Features,
    listener: Listener,
) -> list[Generation]:
    names = ("plain", *(branch.name for branch in options.method.branches()))
    covers = covers_of(adapter, requests, options, features)
    made: dict[str, Pixels] = {}
    encoded = partial(features.known, shares=options.capture is not None and adapter.mixed)
    rows = [row for request in requests for row in rows_of(request, options, made, encoded)]
    exits = exits_of(adapter, options.method)
    edits, layers = options.method.edits(), exits.layers if exits else ()
    shares: Shares | None = {} if options.capture is not None else None
    batch = embed(adapter, rows, features, shares, covers)
    recorder = None
    if options.capture is not None:
        branches, steps = len(batch.embeds) // len(requests), max(request.room for request in requests)
        recorder = Recorder(options.capture, adapter, batch, branches, steps)
    lane = _lane(adapter, batch, options, [one.room for one in requests], recorder) if options.fast else None
    # A lane tells what enters the layers: hooks would forbid that anything is compiled.
    with adapter.session(edits=edits, branches=names, exits=layers, watch=lane is None) as session:
        mark(adapter, [request.prepared.pixels for request in requests], batch, session)
        prefixes = None
        if options.share and not batch.columns.cross:
            prefixes = plan(rows, [one is not None for one in covers or [None] * len(rows)], session.edits)
        tokens, scores = _loop(adapter, batch, requests, options, session, lane, recorder, prefixes, listener)
    ended = zip(tokens.tolist(), requests, strict=True)
    answers = [_finish(adapter, row[: request.room], options.stop_ids) for row, request in ended]
    if options.scores is not None and scores is not None:
        known = (dict(zip(options.scores, row, strict=True)) for row in scores.tolist())
        answers = [replace(answer, scores=row) for answer, row in zip(answers, known, strict=True)]
    if recorder is None or shares is None:
        return answers
    read = recorder.attention([request.prepared for request in requests], [one.token_ids for one in answers], shares)
    return [replace(answer, attention=rows) for answer, rows in zip(answers, read, strict=True)]


def _loop(
    adapter: Adapter,
    batch: Embedded,
    requests: Sequence[Request],
    options: Options,
    session: Session,
    lane: Lane | None,
    recorder: Recorder | None,
    prefixes: Prefixes | None,
    listener: Listener,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids (B, steps) on the CPU, rows that ended early filled up; and the scores that are to be kept."""
    branches = len(batch.embeds) // len(requests)
    rooms = [request.room for request in requests]
    exits = exits_of(adapter, options.method)
    progress = lane.progress if lane else _progress(adapter, options, rooms)
    progress.start(rooms, _uniforms(requests, options))
    # Rows that end with the prefill have no place in a lane.
    cache = lane.cache(len(batch.mask)) if lane and branches == lane.branches else adapter.new_cache()
    scores = None
    for step in range(max(rooms)):
        decode = _prefill(adapter, session, prefixes, lane) if step == 0 else partial(by_modules, adapter)
        hidden = _recorded(decode, batch, cache, session, recorder, step)
        early = exit_scores(adapter, exits, session.left, branches)
        if step == 0:
            kept = _decoded(options.method, len(requests), hidden.device)
            if kept is not None:
                batch, hidden = batch.select(kept), hidden[kept]
                branches = len(kept) // len(requests)
                cache.batch_select_indices(kept)
                session.keep(kept, [name for name in session.branches if name in _rules(options).names])
                if recorder:
                    recorder.keep(kept, branches)
        logits = adapter.logits(hidden).view(len(requests), branches, -1)
        if step == 0:
            scores = _first_scores(logits, early, options)
        chosen = progress.advance(*(lane.padded(logits, early) if lane else (logits, early)))
        listener.hear(step, progress.tokens)
        if lane and lane.rewriting.knows(session.memory):
            if kept is not None:
                lane.load(cache)
            _finish_in(lane, batch, chosen, session, max(rooms), recorder, listener)
            break
        if lane and step == 0:
            session.watch()  # from here on by modules
        chosen = chosen[: len(requests)]
        if bool(progress.finished):
            break
        batch = adapter.follow(batch, chosen.repeat_interleave(branches))
    broken, tokens = bool(progress.broken), progress.tokens[: len(requests)].cpu()
    if lane:
        LANES.give(adapter, lane)
    if broken:
        raise MmattnError("The model's scores are not numbers (NaN)", "Try dtype='bfloat16' or 'float32'.")
    return tokens, scores


def _first_scores(logits: torch.Tensor, early: torch.Tensor | None, options: Options) -> torch.Tensor | None:
    """The kept tokens' scores (B, kept) float32 on the CPU, by the method's rule from all branches' (B, K, V)."""
    if options.scores is None:
        return None
    step = Step(logits, torch.zeros((), dtype=torch.long, device=logits.device), early)
    return options.method.combine(step)[:, list(options.scores.values())].float().cpu()


def _recorded(
    decode: Decode, batch: Embedded, cache: Cache, session: Session, recorder: Recorder | None, step: int
) -> torch.Tensor:
    """One decoder call, its rows kept where they are wanted."""
    session.columns = batch.columns
    if recorder:
        recorder.before(session, step, cache)
    hidden = decode(batch, cache)
    if recorder:
        recorder.after(session, step, cache)
    return hidden


def _prefill(adapter: Adapter, session: Session, prefixes: Prefixes | None, lane: Lane | None) -> Decode:
    """The first call: in a lane's way where there is one, and of what prompts begin with once."""

    def decode(batch: Embedded, cache: Cache) -> torch.Tensor:
        if lane is not None and isinstance(cache, SharedCache):
            return lane.prefill(adapter, batch, cache, session)
        return by_modules(adapter, batch, cache)

    def shared(batch: Embedded, cache: Cache) -> torch.Tensor:
        if prefixes is None or not isinstance(cache, SharedCache):
            return decode(batch, cache)
        return prefill(adapter, batch, prefixes, cache, session, decode)

    return shared


def _lane(
    adapter: Adapter, batch: Embedded, options: Options, rooms: Sequence[int], recorder: Recorder | None
) -> Lane | None:
    """A captured step for this batch, where there can be one."""
    if not options.method.captured:
        return None
    rules = _rules(options)
    columns = recorder.columns.shape[1] if recorder else 0
    lane = LANES.take(adapter, rules, Size(len(rooms), batch.mask.shape[1] + max(rooms), max(rooms), columns))
    if lane and recorder:
        recorder.width = lane.size.columns
    return lane


def _rules(options: Options) -> Rules:
    kept = options.capture and replace(options.capture, tokens=None, device=None)  # which are nothing to a step
    return Rules(options.method, options.sampling, options.stop_ids, kept)


def _finish_in(
    lane: Lane,
    batch: Embedded,
    chosen: torch.Tensor,
    session: Session,
    steps: int,
    recorder: Recorder | None,
    listener: Listener,
) -> None:
    """Decode all further tokens in a lane, up to `steps` in all."""
    if steps == 1:
        return
    # A batch of words alone may have a lane with room for rows.
    kept = lane.kept if recorder and recorder.columns.numel() else None
    if kept and recorder:
        kept.start(recorder.starts[:: lane.branches])

    def take(step: int, rows: torch.Tensor, first: int) -> torch.cuda.Event | None:
        assert recorder is not None
        return recorder.take(step, rows[: len(batch.mask) // lane.branches], first)

    def on_step(step: int) -> None:
        listener.hear(step, lane.progress.tokens)

    lane.finish(batch, chosen, session.memory, steps, on_step, take if kept else None)


def _decoded(method: Method, samples: int, device: torch.device) -> torch.Tensor | None:
    """Rows of the batch that go on after the prefill; None for all."""
    chosen = [True, *(branch.decoded for branch in method.branches())]
    if all(chosen):
        return None
    return torch.tensor(chosen * samples, device=device).nonzero()[:, 0]


def _progress(adapter: Adapter, options: Options, rooms: Sequence[int]) -> Progress:
    return Progress(
        len(rooms),
        max(rooms),
        options.method,
        options.sampling,
        tuple(options.stop_ids),
        adapter.pad_token_id,
        adapter.device,
    )


def _uniforms(requests: Sequence[Request], options: Options) -> torch.Tensor:
    """One draw per sample and step (B, steps); zeros when nothing is drawn."""
    uniforms = torch.zeros(len(requests), max(request.room for request in requests))
    if options.sampling.do_sample:
        for row, one in zip(uniforms, requests, strict=True):
            # As many as the sample alone would draw: the generator's numbers depend on how many are asked for.
            row[: one.room] = torch.rand(one.room, generator=stream(options.seed, "tokens", f"{one.key}\0{one.repeat}"))
    return uniforms


def _finish(adapter: Adapter, row: list[int], stop_ids: frozenset[int]) -> Generation:
    end = next((index for index, token in enumerate(row) if token in stop_ids), None)
    kept = tuple(row[:end])
    text = adapter.tokenizer.decode(list(kept), skip_special_tokens=True).strip()
    stop = None if end is None else row[end]
    return Generation(text, kept, "length" if end is None else "stop", stop_token=stop)
