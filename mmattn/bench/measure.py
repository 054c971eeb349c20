"""Time per step, prefill and memory of decoding, next to plain `hf_model.generate` in the same process.

Figures are medians. Small batches run in turns, so that a slow moment of the machine hits all alike; of large ones, one
kind at a time has its cache on the device.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache

from mmattn.adapters import Adapter, Pixels, Sample
from mmattn.bench.shapes import prompt
from mmattn.decoding.engine import run
from mmattn.decoding.fast import LANES
from mmattn.decoding.features import Features
from mmattn.decoding.method import Method, plausible
from mmattn.decoding.recorder import Capture
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling

# Samples up to which all kinds fit onto the device together.
TOGETHER = 8
# Attention rows of all layers and heads, left on the device or taken off it, and where `Capture` puts them.
ROWS = ((", rows kept", ""), (", rows taken off", "cpu"))
# What the memory of a GPU can deliver, by name, in bytes per second (vendor's figures); others have no floor.
BANDWIDTH = {"H200": 4.8e12, "H100 NVL": 3.9e12, "H100 PCIe": 2.0e12, "H100": 3.35e12, "A100": 2.0e12, "L40S": 0.864e12}


# Generates so many tokens, and calls back when the first ones are chosen.
Plan = Callable[[int, Callable[[], None]], Any]


class Times(NamedTuple):
    """Seconds to the first tokens and from there to the last ones, and the device's memory peak in bytes."""

    prefill: float
    steps: float
    peak: int | None


@dataclass(frozen=True)
class Figures:
    """One line of the table.

    Attributes:
        what: "transformers generate", or the method, perhaps with what else was asked.
        batch: samples; branches: rows per sample.
        prefill_ms, step_ms: for the whole batch, to the first token and from there; the vision tower's work is done
            before.
        tokens_per_s: answers' tokens, all samples together, without the prefill.
        peak_gib: device memory at its highest, weights included.
        floor_ms: a step cannot take less: weights and live cache read once; None where the bus is unknown.
    """

    what: str
    batch: int
    branches: int
    prefill_ms: float | None
    step_ms: float
    tokens_per_s: float
    peak_gib: float | None
    floor_ms: float | None

    @property
    def share_of_floor(self) -> float | None:
        return None if self.floor_ms is None else self.floor_ms / self.step_ms


def measure(
    adapter: Adapter,
    pixels: Pixels,
    methods: Sequence[Method],
    batches: Sequence[int],
    *,
    words: int = 64,
    steps: int = 64,
    repeats: int = 3,
    fast: bool = True,
    capture: bool = False,
    on_figures: Callable[[Figures], None] = lambda _: None,
) -> list[Figures]:
    """Figures for each batch size: transformers' own generate, then every method, `capture` of it after it.

    Where a method has branches, also two of transformers' calls per step, as such methods are usually written.
    """
    found = []
    for batch in batches:
        prepared = [prompt(adapter, pixels, seed, words) for seed in range(batch)]
        depth = adapter.depth
        heads = adapter.model.config.get_text_config().num_attention_heads
        plans: dict[str, tuple[Plan, int]] = {"transformers generate": (_stock(adapter, prepared), 1)}
        if any(method.branches() for method in methods):
            plans["transformers, two calls per step"] = (_stock_contrast(adapter, prepared), 2)
        for method in methods:
            for kept, device in (("", ""), *(ROWS if capture else ())):
                read = Capture(device=device or None).resolved(depth, heads) if kept else None
                plans[method.label + kept] = (_ours(adapter, prepared, method, read, fast), 1 + len(method.branches()))
        works = {name: one for name, (one, _) in plans.items()}
        for name, times in _timed(adapter, works, steps, repeats, together=batch <= TOGETHER):
            branches = plans[name][1]
            step = times.steps / steps
            width = len(prepared[0].ids) + steps // 2
            floor = _floor(adapter, batch * branches, width)
            prefill = round(1000 * times.prefill, 3)
            speed = round(batch / step, 1)
            gib = None if times.peak is None else round(times.peak / 2**30, 3)
            found.append(Figures(name, batch, branches, prefill, round(1000 * step, 4), speed, gib, floor))
            on_figures(found[-1])
    return found


def _timed(
    adapter: Adapter, plans: dict[str, Plan], steps: int, repeats: int, *, together: bool
) -> Iterator[tuple[str, Times]]:
    """Medians of every plan's times for 1 + `steps` tokens, and the memory peak of each alone.

    `together`: in turns, each plan's buffers kept while the others run; else one plan after the other.
    """
    rounds = [plans] if together else [{name: plan} for name, plan in plans.items()]
    before, LANES.room = LANES.room, len(plans)
    try:
        for some in rounds:
            yield from _in_turns(adapter, some, steps, repeats).items()
            _forget(adapter)
    finally:
        LANES.room = before


def _in_turns(adapter: Adapter, plans: dict[str, Plan], steps: int, repeats: int) -> dict[str, Times]:
    seen: dict[str, list[Times]] = {name: [] for name in plans}
    peaks: dict[str, int | None] = {}
    _forget(adapter)
    alone = _allocated()
    for name, plan in plans.items():
        _forget(adapter)  # a peak is of a plan alone, the buffers that it may share with others included
        others = _allocated() - alone  # such as features
        _once(plan, 1)
        peak = _once(plan, 1 + steps).peak
        peaks[name] = None if peak is None else peak - others
    warm = len(plans) > 1  # a single plan has its buffers already
    for turn in range(repeats + warm):
        for name, plan in plans.items():
            times = _once(plan, 1 + steps)
            if turn >= warm:
                seen[name].append(times)
    middle = statistics.median
    return {
        name: Times(middle(row.prefill for row in rows), middle(row.steps for row in rows), peaks[name])
        for name, rows in seen.items()
    }


def _allocated() -> int:
    """Bytes on the device."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _once(plan: Plan, tokens: int) -> Times:
    cuda = torch.cuda.is_available()
    first: list[float] = []

    def begun() -> None:
        if cuda:
            torch.cuda.synchronize()
        first.append(time.perf_counter())

    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    plan(tokens, begun)
    if cuda:
        torch.cuda.synchronize()
    end = time.perf_counter()
    return Times(first[0] - start, end - first[0], torch.cuda.max_memory_allocated() if cuda else None)


def _ours(adapter: Adapter, prepared: Sequence[Any], method: Method, capture: Capture | None, fast: bool) -> Plan:
    features = Features(1 << 34)  # as beside it: vision is done before

    def work(tokens: int, begun: Callable[[], None]) -> Any:
        requests = [
            # Probes of the same length stand for those with other words.
            Request(Sample((), "-"), one, str(index), 0, tokens, probes=dict.fromkeys(method.probes(), one))
            for index, one in enumerate(prepared)
        ]
        options = Options(method, Sampling(), frozenset(), 0, capture, fast)
        return run(adapter, requests, options, len(requests), features=features, on_prefill=begun)

    return work


def _stock(adapter: Adapter, prepared: Sequence[Any]) -> Plan:
    """The decoder's part of `hf_model.generate`: a dynamic cache, greedy, no stop token, vision done before."""
    with torch.inference_mode():
        features = adapter.encode([one.pixels[0] for one in prepared])
        batch = adapter.embed(prepared, [[one] for one in features])
    within: Any = getattr(adapter.model, "language_model", None)  # InstructBLIP's own generate starts from pictures
    model = within if hasattr(within, "generate") else adapter.model

    @torch.inference_mode()
    def work(tokens: int, begun: Callable[[], None]) -> Any:
        steps = itertools.count()

        def told(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if next(steps) == 0:
                begun()
            return scores

        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = GenerationConfig(**limits, eos_token_id=None)
            given = {"inputs_embeds": batch.embeds, "attention_mask": batch.mask, "logits_processor": [told]}
            return model.generate(**given, generation_config=settings)

    return work


def _stock_contrast(adapter: Adapter, prepared: Sequence[Any]) -> Plan:
    """Contrastive decoding as it is usually written: a call and a cache for each branch, the model as it is."""
    with torch.inference_mode():
        features = adapter.encode([one.pixels[0] for one in prepared])
        first = adapter.embed(prepared, [[one] for one in features])

    @torch.inference_mode()
    def work(tokens: int, begun: Callable[[], None]) -> None:
        caches = [DynamicCache(), DynamicCache()]
        batches = [first, first]
        for step in range(tokens):
            plain, other = (
                adapter.logits(adapter.decode(batch, cache)[:, -1])
                for batch, cache in zip(batches, caches, strict=True)
            )
            chosen = (2 * plain - other).masked_fill(~plausible(plain, 0.1), -torch.inf).argmax(-1)
            if step == 0:
                begun()
            batches = [adapter.follow(batch, chosen) for batch in batches]

    return work


def _floor(adapter: Adapter, rows: int, width: int) -> float | None:
    """Milliseconds to read the decoder's weights and the rows' cache once."""
    if adapter.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(adapter.device)
    rate = next((rate for part, rate in BANDWIDTH.items() if part in name), None)
    if rate is None:
        return None
    weights = sum(one.nbytes for one in adapter.decoder.parameters())
    weights += adapter.model.get_output_embeddings().weight.nbytes - adapter.model.get_input_embeddings().weight.nbytes
    config = adapter.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache: int = rows * width * 2 * heads * dim * adapter.depth * adapter.model.dtype.itemsize
    return float(round(1000 * (weights + cache) / rate, 4))


def _forget(adapter: Adapter) -> None:
    """Free what a batch size held before the next one is measured."""
    LANES.clear(adapter)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
