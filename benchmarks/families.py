"""Each family at full size with random weights on one GPU: prefill, time per step and memory, with and without capture.

    python -m benchmarks.families --out families.json [--only llava-1.5-7b,qwen2.5-vl-7b] [--tiny]

The configurations are those of the published checkpoints; speed and memory do not depend on the weights. What is
compared is measured in one process, in turns. Also how many bf16 tokens agree between a batch and one by one.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mmattn.adapters import Adapter, Pixels, Sample
from mmattn.bench import MODELS, build, measure
from mmattn.bench.shapes import prompt
from mmattn.decoding import resolve, split_methods
from mmattn.decoding.engine import run
from mmattn.decoding.method import Method
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling
from mmattn.eval.provenance import commit, versions


def ties(adapter: Adapter, pixels: Pixels, batch: int, steps: int) -> dict[str, Any]:
    """How many bf16 tokens of a batch differ from one-by-one decoding before the first difference of each sample."""
    prepared = [prompt(adapter, pixels, seed) for seed in range(batch)]
    requests = [Request(Sample((), "-"), one, str(index), 0, steps) for index, one in enumerate(prepared)]
    options = Options(Method(), Sampling(), frozenset(), 0)
    together, alone = run(adapter, requests, options, batch), run(adapter, requests, options, 1)
    agree = 0
    for one, other in zip(together, alone, strict=True):
        pairs = zip(one.token_ids, other.token_ids, strict=True)
        agree += next((index for index, (a, b) in enumerate(pairs) if a != b), steps)
    equal = sum(a.token_ids == b.token_ids for a, b in zip(together, alone, strict=True))
    return {"samples": batch, "tokens_each": steps, "equal_samples": equal, "tokens_before_a_difference": agree}


def main(
    out: Annotated[Path, typer.Option()],
    only: str = ",".join(MODELS),
    methods: str = "greedy",
    batch_sizes: str = "8",
    steps: int = 32,
    repeats: int = 2,
    tiny: bool = False,
) -> None:
    """Measure, and write the figures after each model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "dtype": "bfloat16", "steps": steps,
        "repeats": repeats, "commit": commit(), "versions": versions(), "models": {},
    }  # fmt: skip
    chosen, sizes = [resolve(one) for one in split_methods(methods)], [int(one) for one in batch_sizes.split(",")]
    for name in only.split(","):
        start = time.perf_counter()
        adapter, pixels = build(name, device, tiny)
        one = prompt(adapter, pixels, 0)
        figures = measure(adapter, pixels, chosen, sizes, steps=steps, repeats=repeats, capture=True)
        report["models"][name] = {
            "tokens": len(one.ids),
            "image_tokens": len(one.layout.image_tokens),
            "figures": [dataclasses.asdict(each) for each in figures],
            "ties": ties(adapter, pixels, max(sizes), steps),
            "seconds": round(time.perf_counter() - start, 1),
        }
        for each in figures:
            print(name, each, flush=True)
        print(name, report["models"][name]["ties"], report["models"][name]["seconds"], flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n")  # whatever comes next, this one is kept
        del adapter
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    typer.run(main)
