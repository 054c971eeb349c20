"""What grounding costs: many queries about one picture, and regions on the grid against a search over pixels.

    python -m benchmarks.grounding --model scenes-llava --out grounding.json
    python -m benchmarks.grounding --model llava-1.5-7b --out grounding.json      # random weights at full size

"one-token answers" are those of `generate`, their prefix shared within each batch. Regions are those of TAG's maps of
the scenes' val split (with a bundled model), as they are and stretched to larger grids, and of random grids, which fall
into very many regions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

import mmattn
from mmattn import scenes
from mmattn.adapters import Adapter, Affine, Sample, View
from mmattn.bench.shapes import MODELS, build, prompt
from mmattn.decoding import Method
from mmattn.decoding.engine import run
from mmattn.decoding.fast import LANES
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling
from mmattn.eval import load_instances, provenance
from mmattn.eval.referring import single_objects
from mmattn.grounding import Tag
from mmattn.grounding.ground import questions
from mmattn.grounding.locator import detail
from mmattn.grounding.reader import Job, Reader
from mmattn.grounding.regions import find, normalised
from tests.grounding.oracle import pixel_regions

PICTURE = Image.new("RGB", (336, 336), "grey")
Level = NDArray[np.float32]


class Unshared(Reader):
    """Every sequence prefilled whole; the picture is still encoded once."""

    def _begin(self, *_: Any) -> None:
        return None


def jobs_of(name: str, count: int, device: str, tiny: bool) -> tuple[Adapter, list[Job]]:
    """`count` queries about one picture, 12 tokens read of each."""
    if name in MODELS:
        adapter, pixels = build(name, device, tiny)
        first = prompt(adapter, pixels, 0)
        start = first.layout.images[0].tokens.stop + 8
        made = []
        for seed in range(count):
            ids = first.ids.clone()
            ids[start:] = torch.randint(10, 30000, (len(ids) - start,), generator=torch.Generator().manual_seed(seed))
            made.append(replace(first, ids=ids))
        return adapter, [Job(one, tuple(range(start, start + 12))) for one in made]
    adapter = mmattn.load(name, device=device).adapter
    samples = [Sample((PICTURE,), f"Where is thing number {index} in the image?") for index in range(count)]
    return adapter, [Job(one, tuple(one.layout.instruction)[:12]) for one in adapter.prepare(samples)]


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of one call, after one that does not count; without a GPU seconds of the process."""
    cuda = torch.cuda.is_available()
    now = time.perf_counter if cuda else time.process_time
    seen = []
    for _ in range(repeats + 1):
        if cuda:
            torch.cuda.synchronize()
        start = now()
        call()
        if cuda:
            torch.cuda.synchronize()
        seen.append(now() - start)
    return statistics.median(seen[1:])


def queries(adapter: Adapter, jobs: Sequence[Job], batch: int, repeats: int) -> dict[str, Any]:
    """Seconds for all queries: grounded, answered with one token, and grounded without sharing; peak memory."""
    tag, count = Tag(), len(jobs)
    asked = [Request(Sample((), "?"), job.prepared, f"{number}", 0, 1) for number, job in enumerate(jobs)]
    options = Options(Method(), Sampling(), frozenset(), 0)

    def ground(kind: type[Reader], some: Sequence[Job]) -> None:
        for read in kind(adapter, PICTURE, batch).rows(some):
            tag.cells(read)

    def answer() -> None:
        run(adapter, asked, options, batch)

    figures: dict[str, Any] = {"queries": count, "batch": batch, "tokens": len(jobs[0].prepared.ids)}
    figures["one_token_answers_s"] = round(timed(answer, repeats), 3)
    figures["grounded_s"] = round(timed(lambda: ground(Reader, jobs), repeats), 3)
    figures["grounded_without_sharing_s"] = round(timed(lambda: ground(Unshared, jobs), repeats), 3)
    figures["ratio"] = round(figures["grounded_s"] / figures["one_token_answers_s"], 2)
    if torch.cuda.is_available():
        LANES.clear(adapter)
        for some in (jobs[: count // 2], jobs):
            torch.cuda.reset_peak_memory_stats()
            ground(Reader, some)
            figures[f"peak_gib_{len(some)}"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return figures


def maps(name: str, pictures: int) -> list[Level]:
    """TAG's maps, largest value 1, of single objects of the first so many pictures of val."""
    data = scenes.dataset("val")
    targets = single_objects("val", load_instances(data.instances)).first(pictures).targets
    vlm, found = mmattn.load(name, device="cpu"), []
    for one in targets:
        picture = mmattn.open_image(data.images / one.image)
        job = questions(vlm.adapter, picture, [one.query], Tag(), lambda _: [])[0].job
        assert job is not None
        read = next(Reader(vlm.adapter, picture).rows([job]))
        shown = read.layout.images[0]
        found.append(normalised(Tag().cells(read), detail(shown), shown.size))
    return found


def stretched(level: Level, side: int) -> Level:
    """A map on a grid of `side` x `side` cells, bilinear, largest value 1."""
    image = Image.fromarray(level).resize((side, side), Image.Resampling.BILINEAR)
    values: Level = np.asarray(image)
    return values / values.max()


def regions(levels: Sequence[Level], patch: int) -> dict[str, Any]:
    """Milliseconds for the boxes of a map (mean of `levels`), both ways; cells are `patch` pixels."""
    grid = pixels = found = 0.0
    for level in levels:
        side = len(level)
        view, size = View(0, side, side, Affine(patch, patch)), (side * patch, side * patch)
        found += len(find(level, view, size, 0.5).boxes) / len(levels)
        grid += 1000 * timed(partial(find, level, view, size, 0.5), 50) / len(levels)
        pixels += 1000 * timed(partial(pixel_regions, level, patch, 0.5), 1) / len(levels)
    return {
        "cells": len(levels[0]) ** 2, "regions": round(found, 1), "grid_ms": round(grid, 4),
        "pixels_ms": round(pixels, 1), "times": round(pixels / grid),
    }  # fmt: skip


def all_regions(name: str) -> dict[str, Any]:
    """Regions of attention maps and of random grids."""
    seen = maps(name, 5)
    random = {side: np.random.default_rng(0).random((side, side)).astype(np.float32) ** 4 for side in (24, 48, 96)}
    return {
        "attention": regions(seen, 14),
        "attention stretched": [regions([stretched(one, side) for one in seen[:5]], 14) for side in (24, 48, 96)],
        "random": [regions([level], 14) for level in random.values()],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two layers, for a rehearsal")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter, jobs = jobs_of(args.model, args.count, device, args.tiny)
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__, "transformers": transformers.__version__, "model": args.model,
        "commit": provenance.commit(), "queries": queries(adapter, jobs, args.batch, args.repeats),
    }  # fmt: skip
    if args.model not in MODELS:
        report["regions"] = all_regions(args.model)
    print(json.dumps(report, indent=1))
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
