"""Batched decoding: every branch of every sample is a row of one batch, and each step is one decoder call.

B samples, K branches of the method, V vocabulary; rows are ordered sample by sample: row = b * K + k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from mmattn.adapters import Adapter, Embedded, Pixels, Prepared, Sample, Shares
from mmattn.attention import Edit, RowCapture, Session
from mmattn.decoding.fast import LANES, Rules, Size
from mmattn.decoding.method import Method
from mmattn.decoding.progress import Progress
from mmattn.decoding.recorder import Capture, Recorder
from mmattn.decoding.sampling import Sampling, stream
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
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    attention: Attention | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Request:
    """A sample ready to decode.

    Attributes:
        key: names its random streams.
        repeat: how many samples with this key stand before it; they draw other tokens, from the same scores.
        room: tokens that may be generated.
        others: the sample as each further branch of the method sees it; empty if it does not change for any.
        probes: the sample as each probe sees it, by name.
    """

    sample: Sample
    prepared: Prepared
    key: str
    repeat: int
    room: int
    others: tuple[Prepared, ...] = ()
    probes: Mapping[str, Prepared] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What holds for all samples of one `generate` call.

    Attributes:
        fast: on a GPU, decode by a step that is captured once and replayed, where the model and the method allow it.
    """

    method: Method
    sampling: Sampling
    stop_ids: frozenset[int]
    seed: int
    capture: Capture | None = None
    fast: bool = True


def run(
    adapter: Adapter,
    requests: Sequence[Request],
    options: Options,
    batch_size: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Generation]:
    """Decode requests in batches of at most `batch_size`; results come in the order of the requests.

    Requests of similar length share a batch, so little is padded. A batch that runs out of memory is halved and
    tried again; finished ones are kept. `on_done` hears how many answers each batch finished.

    Raises:
        MmattnError: a single sample does not fit into memory, or the model's scores are not numbers.
    """
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prepared.ids))
    done: dict[int, Generation] = {}
    waiting = [order[start : start + batch_size] for start in range(0, len(order), batch_size)][::-1]
    while waiting:
        chunk = waiting.pop()
        try:
            answers = _decode_batch(adapter, [requests[index] for index in chunk], options)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            LANES.clear(adapter)
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


@torch.inference_mode()
def _decode_batch(adapter: Adapter, requests: Sequence[Request], options: Options) -> list[Generation]:
    names = ("plain", *(branch.name for branch in options.method.branches()))
    covers = _covers(adapter, requests, options)
    with adapter.session(edits=options.method.edits(), branches=names) as session:
        shares: Shares | None = {} if options.capture is not None else None
        batch = _embed_branches(adapter, requests, options, shares, covers)
        recorder = None
        if options.capture is not None:
            recorder = Recorder(options.capture, adapter, batch, len(batch.embeds) // len(requests))
        tokens = _loop(adapter, batch, requests, options, session, recorder)
    rows = zip(tokens.tolist(), requests, strict=True)
    answers = [_finish(adapter, row[: request.room], options.stop_ids) for row, request in rows]
    if recorder is None or shares is None:
        return answers
    read = recorder.attention([request.prepared for request in requests], [one.token_ids for one in answers], shares)
    return [replace(answer, attention=rows) for answer, rows in zip(answers, read, strict=True)]


@dataclass(frozen=True)
class _Cover:
    """Image tokens (image tokens,) bool that are hidden, or whose features are 0."""

    tokens: torch.Tensor
    zeroed: bool

    def zero(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        parts = torch.split(self.tokens, [len(one) for one in features])
        return [one.masked_fill(part.to(one.device)[:, None], 0) for one, part in zip(features, parts, strict=True)]


def _covers(adapter: Adapter, requests: Sequence[Request], options: Options) -> list[_Cover | None] | None:
    """What is covered in each row of the batch; None where nothing is in any."""
    branches = options.method.branches()
    if all(branch.hidden is None for branch in branches):
        return None
    found: list[_Cover | None] = []
    for looks in _probe(adapter, requests):
        chosen = [_Cover(branch.hidden(looks), branch.zeroed) if branch.hidden else None for branch in branches]
        found += [None, *chosen]
    return found


def _probe(adapter: Adapter, requests: Sequence[Request]) -> list[dict[str, torch.Tensor]]:
    """What the last token of each prompt looks at, under each probe: (layers, heads, image tokens) on the CPU.

    One prefill of the unedited model, without a cache.
    """
    names = ["plain", *requests[0].probes]
    rows = [(one, one.pixels) for request in requests for one in (request.prepared, *request.probes.values())]
    batch = _embed(adapter, rows)
    image = batch.columns.image
    counts = image.sum(-1).tolist()
    columns = image.int().argsort(dim=-1, descending=True, stable=True)[:, : max(counts)]
    capture = RowCapture(torch.full((len(rows), 1), -1), columns)
    with adapter.session(capture):
        adapter.decode(batch)
    read = capture.stacked()[:, :, :, 0].cpu()
    looks = [read[:, row, :, :count] for row, count in enumerate(counts)]
    return [dict(zip(names, looks[at : at + len(names)], strict=True)) for at in range(0, len(looks), len(names))]


def _embed_branches(
    adapter: Adapter,
    requests: Sequence[Request],
    options: Options,
    shares: Shares | None,
    covers: Sequence[_Cover | None] | None,
) -> Embedded:
    """One left-padded batch with the rows of all branches; equal pictures are encoded once."""
    rows = [row for request in requests for row in _branch_rows(request, options)]
    return _embed(adapter, rows, shares, covers)


def _embed(
    adapter: Adapter,
    rows: Sequence[tuple[Prepared, tuple[Pixels, ...]]],
    shares: Shares | None = None,
    covers: Sequence[_Cover | None] | None = None,
) -> Embedded:
    pictures = {one.key: one for _, pixels in rows for one in pixels}
    encoded = dict(zip(pictures, adapter.encode(list(pictures.values()), shares), strict=True)) if pictures else {}
    features = [[encoded[one.key] for one in pixels] for _, pixels in rows]
    hidden: list[torch.Tensor | None] = [None] * len(rows)
    for row, cover in enumerate(covers or ()):
        if cover is not None and cover.zeroed:
            features[row] = cover.zero(features[row])
        elif cover is not None:
            hidden[row] = cover.tokens
    return adapter.embed([row for row, _ in rows], features, hidden)


def _branch_rows(request: Request, options: Options) -> Iterator[tuple[Prepared, tuple[Pixels, ...]]]:
    """The tokens and pictures of the plain branch and the others; changed pictures get keys of their own."""
    yield request.prepared, request.prepared.pixels
    branches = options.method.branches()
    others = request.others or (request.prepared,) * len(branches)
    for branch, prepared in zip(branches, others, strict=True):
        if branch.pixels is None:
            yield prepared, prepared.pixels
            continue
        generator = stream(options.seed, f"branch {branch.name}", request.key)
        yield (
            prepared,
            tuple(
                replace(
                    one,
                    key=f"{one.key} {branch.name} {request.key} {place}",
                    values=branch.pixels(one.values, generator),
                )
                for place, one in enumerate(prepared.pixels)
            ),
        )


def _loop(
    adapter: Adapter,
    batch: Embedded,
    requests: Sequence[Request],
    options: Options,
    session: Session,
    recorder: Recorder | None,
) -> torch.Tensor:
    """Token ids (B, steps) on the CPU; rows that ended early are filled up."""
    branches = len(batch.embeds) // len(requests)
    rooms = [request.room for request in requests]
    lane = _lane(adapter, batch, options, branches, rooms, recorder) if options.fast else None
    progress = lane.progress if lane else _progress(adapter, options, rooms)
    progress.start(rooms, _uniforms(requests, options))
    cache = lane.cache(len(batch.mask)) if lane else adapter.new_cache()
    for step in range(max(rooms)):
        session.columns = batch.columns
        if recorder:
            recorder.before(session, step, cache)
        hidden = adapter.decode(batch, cache)[:, -1]
        if recorder:
            recorder.after(session, step, cache)
        if step == 0:
            kept = _decoded(options.method, len(requests), hidden.device)
            if kept is not None:
                batch, hidden = batch.select(kept), hidden[kept]
                branches = len(kept) // len(requests)
                cache.batch_select_indices(kept)
                session.keep(kept, _decoded_names(options.method))
                if recorder:
                    recorder.keep(kept, branches)
        logits = adapter.logits(hidden).view(len(requests), branches, -1)
        chosen = progress.advance(lane.padded(logits) if lane else logits)
        if lane and not any(session.memory.values()):
            _finish_in(lane, batch, chosen, branches, recorder)
            break
        chosen = chosen[: len(requests)]
        if bool(progress.finished):
            break
        batch = adapter.follow(batch, chosen.repeat_interleave(branches))
    broken, tokens = bool(progress.broken), progress.tokens[: len(requests)].cpu()
    if lane:
        LANES.give(adapter, lane)
    if broken:
        raise MmattnError("The model's scores are not numbers (NaN)", "Try dtype='bfloat16' or 'float32'.")
    return tokens


def _lane(
    adapter: Adapter,
    batch: Embedded,
    options: Options,
    branches: int,
    rooms: Sequence[int],
    recorder: Recorder | None,
) -> Lane | None:
    """A captured step for this batch, where there can be one."""
    if not _replayable(options.method):
        return None
    rules = Rules(options.method, options.sampling, options.stop_ids, branches, options.capture)
    columns = recorder.columns.shape[1] if recorder else 0
    return LANES.take(adapter, rules, Size(len(rooms), batch.mask.shape[1] + max(rooms), max(rooms), columns))


def _finish_in(lane: Lane, batch: Embedded, chosen: torch.Tensor, branches: int, recorder: Recorder | None) -> None:
    """Decode all further tokens in a lane."""
    if recorder is None or not recorder.columns.shape[1]:
        lane.finish(batch, chosen)
        return
    mine = recorder.columns[::branches]
    samples, width = mine.shape
    lane.columns[:samples, :width] = mine
    lane.finish(batch, chosen, lambda step: recorder.take(step, lane.rows[:, :samples, :, :width]))


def _replayable(method: Method) -> bool:
    """Whether the captured step knows all that the method asks for."""
    simple = all(type(edit).output is Edit.output and edit.branches is None for edit in method.edits())
    return simple and all(branch.decoded and branch.hidden is None for branch in method.branches())


def _decoded_names(method: Method) -> list[str]:
    return ["plain", *(branch.name for branch in method.branches() if branch.decoded)]


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
    return Generation(text, kept, "length" if end is None else "stop")
