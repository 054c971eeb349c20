"""Many yes-no questions about a few pictures, as POPE asks them: with and without shared prefills.

    python -m benchmarks.pope_speed --pictures 500 --questions 18 --out FILE

A published model's shape with random weights; answers of 1 to 3 tokens. Pictures are encoded, as in a real run; reading
files and tokenising are not part of it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mmattn.adapters import Adapter, Pixels, Sample
from mmattn.bench.shapes import build, prompt
from mmattn.decoding import resolve
from mmattn.decoding.engine import run
from mmattn.decoding.fast import LANES
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling
from mmattn.eval.provenance import commit, versions


def asked(adapter: Adapter, pixels: Pixels, pictures: int, questions: int) -> list[Request]:
    """Questions of 24 to 27 words, the last 7 to 10 of them their own."""
    found = []
    for picture in range(pictures):
        first = prompt(adapter, pixels, picture, 24)
        for question in range(questions):
            torch.manual_seed(picture * questions + question)
            own = torch.randint(10, 1000, (7 + question % 4,))
            ids = torch.cat([first.ids[:-7], own])
            layout = type(first.layout)(len(ids), len(ids), first.layout.images)
            each = type(first)(ids, first.pixels, layout, "", ((0, 0),) * len(ids), (0, 0))
            found.append(Request(Sample((), "-"), each, f"{picture} {question}", 0, 1 + question % 3))
    return found


def main(
    model: Annotated[str, typer.Option(help="Shape.")] = "llava-1.5-7b",
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "greedy,vcd",
    pictures: int = 500,
    questions: int = 18,
    batch_size: int = 72,
    unshared: Annotated[int, typer.Option(help="Pictures of the run without sharing, which is scaled up.")] = 50,
    tiny: bool = False,
    out: Path | None = None,
) -> None:
    """Time them and print seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter, pixels = build(model, device, tiny)
    rows: list[dict[str, Any]] = []
    for name in methods.split(","):
        for share in (True, False):
            count = pictures if share else min(unshared, pictures)
            requests = asked(adapter, pixels, count, questions)
            options = Options(resolve(name), Sampling(), frozenset(), 0, share=share)
            run(adapter, requests[:batch_size], options, batch_size)  # compiles
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run(adapter, requests, options, batch_size)
            seconds = time.perf_counter() - start
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
            each = seconds / len(requests)
            rows.append(
                {
                    "method": name, "shared": share, "questions": len(requests), "seconds": round(seconds, 2),
                    "ms_per_question": round(1000 * each, 3), "seconds_for_9000": round(9000 * each, 1),
                    "peak_gib": peak and round(peak, 2),
                }
            )  # fmt: skip
            typer.echo(json.dumps(rows[-1]))
            LANES.clear(adapter)
            if device == "cuda":
                torch.cuda.empty_cache()
            if out is not None:
                out.write_text(
                    json.dumps({"model": model, "batch_size": batch_size, "rows": rows, **_origin()}, indent=1)
                )


def _origin() -> dict[str, Any]:
    return {"commit": commit(), "versions": versions()}


if __name__ == "__main__":
    typer.run(main)
