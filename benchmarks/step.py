"""The decode step alone: each product's blocks, and the whole step replayed as a graph, against the memory bus.

    python -m benchmarks.step --out step.json [--sweep] [--parts] [--tiny]

`--parts` takes what methods add to a step instead: attention, edits of it, rows that are kept, and the choice of a
token.

Random bf16 weights in the shape of LLaVA-1.5-7B. Times are medians of graph replays by device events.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmattn.attention.compiling import compiling
from mmattn.decoding import resolve
from mmattn.decoding.fast import blocks as cuts
from mmattn.decoding.fast import step as fast
from mmattn.decoding.fast.choosing import Greedy
from mmattn.decoding.fast.keeping import KeptRows
from mmattn.decoding.fast.parts import DecoderParts, LayerParts
from mmattn.decoding.fast.rewriting import Rewriting
from mmattn.decoding.progress import Progress
from mmattn.decoding.sampling import Sampling

# Outputs and inputs of a block, warps, stages; by the number of rows.
CANDIDATES = {
    1: [
        (1, 2048, 4, 1), (2, 1024, 4, 1), (2, 2048, 8, 1), (2, 4096, 8, 1), (4, 1024, 4, 1), (4, 1024, 8, 1),
        (4, 2048, 8, 1), (8, 512, 4, 1),
    ],
    16: [
        (64, 128, 4, 4), (64, 128, 4, 5), (64, 128, 4, 6), (64, 256, 4, 3), (64, 256, 8, 4), (128, 64, 8, 5),
        (128, 64, 4, 5), (128, 64, 8, 8), (128, 128, 8, 3), (128, 128, 8, 4), (32, 256, 4, 5), (64, 128, 4, 3),
    ],
    64: [
        (64, 64, 4, 4), (64, 64, 4, 6), (64, 64, 4, 8), (64, 64, 8, 6), (64, 128, 4, 3), (64, 128, 4, 4),
        (64, 128, 4, 5), (128, 64, 4, 4), (128, 64, 4, 5), (128, 64, 8, 6), (32, 64, 4, 8), (64, 128, 8, 5),
        (128, 128, 8, 4), (128, 128, 4, 4), (256, 32, 8, 6), (128, 32, 4, 8), (64, 256, 8, 3),
    ],
}  # fmt: skip
SPLITS = (1, 2, 4, 8)


def shape(layers: int, device: str, tiny: bool) -> DecoderParts:
    """A decoder of LLaVA-1.5-7B's sizes with random weights."""
    hidden, inner, heads, vocabulary = (256, 688, 2, 1000) if tiny else (4096, 11008, 32, 32064)

    def weight(n: int, k: int) -> torch.Tensor:
        return torch.randn(n, k, device=device, dtype=torch.bfloat16) * 0.02

    def linear(n: int, k: int) -> nn.Linear:
        made = nn.Linear(1, 1, bias=False)
        made.weight = nn.Parameter(weight(n, k), requires_grad=False)
        return made

    gain = torch.ones(hidden, device=device, dtype=torch.bfloat16)
    made = tuple(
        LayerParts(
            gain, linear(hidden, hidden), linear(hidden, hidden), linear(hidden, hidden), None, None,
            weight(hidden, hidden), gain, weight(inner, hidden), weight(inner, hidden), weight(hidden, inner),
        )
        for _ in range(layers)
    )  # fmt: skip

    class Rotary(nn.Module):
        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            angle = positions[..., None] * torch.ones(128, device=x.device) * 0.01
            return angle.cos().to(x), angle.sin().to(x)

    embedding = weight(vocabulary, hidden)
    return DecoderParts(
        made, embedding, gain, weight(vocabulary, hidden), Rotary(), heads, heads, 128, hidden, inner, 1e-5, 128**-0.5
    )


def replayed(work: Callable[[], Any], repeats: int = 20) -> float:
    """Median milliseconds of one replay of `work` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def step_of(parts: DecoderParts, rows: int, used: int, slots: int, **options: Any) -> fast.DecodeStep:
    """A step with a cache of random keys, `used` of `slots` filled."""
    size = (len(parts.layers), rows, parts.groups, slots, parts.dim)
    keys, values = (torch.randn(size, device=parts.device, dtype=parts.dtype) for _ in range(2))
    made = fast.DecodeStep(parts, keys, values, slots, **options)
    made.reset()
    made.length.fill_(used)
    made.positions.fill_(used)
    return made


def products(step: fast.DecodeStep) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each kind of product over all layers, and the bytes of its weights."""
    layers, pieces = step.parts.layers, step._blocks
    first, depth = layers[0], len(layers)

    def qkv() -> None:
        for index in range(depth):
            step._project(index, pieces)

    def output() -> None:
        for one in layers:
            step._onto_stream(step._mixed, one.output, one.mlp_gain)

    def gated() -> None:
        for one in layers:
            step._gated(one, pieces)

    def down() -> None:
        for one in layers:
            step._onto_stream(step._inner, one.down, one.mlp_gain)

    bytes_of = {
        "qkv": 3 * first.query.weight.nbytes, "output": first.output.nbytes, "gated": 2 * first.gate.nbytes,
        "down": first.down.nbytes,
    }  # fmt: skip
    return {one.__name__: (one, depth * bytes_of[one.__name__]) for one in (qkv, output, gated, down)}


def reading_rate() -> float:
    """Terabytes per second at which 4 GiB are read."""
    block = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").view(torch.float32)
    return round(block.nbytes / replayed(block.sum) / 1e9, 3)


def sweep(parts: DecoderParts, rows: int, tile: int) -> list[dict[str, Any]]:
    """Every candidate for every kind of product."""
    found = []
    for (n, k, warps, stages), split in itertools.product(CANDIDATES[tile], SPLITS):
        for table in (cuts.PROJECT, cuts.GATED, cuts.ONTO):
            table[tile] = cuts.Blocks(tile, n, k, warps, stages, split)
        made = step_of(parts, rows, 600, 704)
        for name, (work, size) in products(made).items():
            if split > 1 and name not in ("output", "down"):
                continue  # only those can be split
            try:
                ms = replayed(work, 5)
            except Exception as error:  # a candidate that does not fit is no candidate
                print("skip", name, n, k, warps, stages, str(error)[:80], flush=True)
                continue
            found.append(
                {"kind": name, "rows": rows, "n": n, "k": k, "warps": warps, "stages": stages, "split": split,
                 "ms": round(ms, 4),
                 "tb_s": round(size / ms / 1e9, 3)}
            )  # fmt: skip
    return [*found, *library(parts, rows)]


def library(parts: DecoderParts, rows: int) -> list[dict[str, Any]]:
    """The same products by the vendor's library."""
    found = []
    for name, size in (("query", 3), ("output", 1), ("gate", 2), ("down", 1)):
        taken = [getattr(one, name) for one in parts.layers]
        weights = [getattr(one, "weight", one) for one in taken]
        together = [torch.cat([one] * size) for one in weights]
        x = torch.randn(rows, together[0].shape[1], device=parts.device, dtype=parts.dtype)

        def work(together: list[torch.Tensor] = together, x: torch.Tensor = x) -> None:
            for one in together:
                torch.nn.functional.linear(x, one)

        ms = replayed(work, 5)
        size = sum(one.nbytes for one in together)
        found.append({"kind": f"library {name}", "rows": rows, "ms": round(ms, 4), "tb_s": round(size / ms / 1e9, 3)})
    return found


def edits(parts: DecoderParts, rows: int, slots: int) -> list[dict[str, Any]]:
    """Microseconds of a layer's edit, by method."""
    found = []
    for name in ("boost", "var"):
        made = Rewriting(resolve(name).edits(), ("plain",), 32, parts.heads, rows, slots, parts.device)
        scores = torch.randn(rows, parts.heads, 1, slots, device=parts.device)

        def work(made: Rewriting = made, scores: torch.Tensor = scores) -> None:
            for layer in sorted(made.layers):
                made.rewrite(layer, scores)

        with compiling():
            ms = replayed(work)
        found.append({"kind": name, "rows": rows, "us_per_layer": round(1000 * ms / len(made.layers), 2)})
    return found


def attending(parts: DecoderParts, rows: int, used: int, slots: int, columns: int = 0) -> dict[str, Any]:
    """Microseconds of a layer's attention, with the rows on `columns` slots kept, and the rate at which it reads."""
    layers, heads = range(len(parts.layers)), range(parts.heads)
    kept = KeptRows(layers, heads, parts.heads, rows, columns, parts.device) if columns else None
    made = step_of(parts, rows, used, slots, kept=kept)

    def work() -> None:
        for index in range(len(parts.layers)):
            made._attention(index, made._none, kept=kept.of_layer(index) if kept else None)

    ms = replayed(work) / len(parts.layers)
    size = 2 * rows * (used + 1) * parts.groups * parts.dim * parts.dtype.itemsize
    rate = round(size / ms / 1e9, 3)
    return {
        "kind": "attention", "rows": rows, "tokens": used, "kept": columns, "us_per_layer": round(1000 * ms, 1),
        "tb_s": rate,
    }  # fmt: skip


def choosing(name: str, samples: int, vocabulary: int) -> dict[str, Any]:
    """Milliseconds from scores to tokens."""
    method = resolve(name)
    progress = Progress(samples, 64, method, Sampling(), (2,), 0, torch.device("cuda"))
    progress.start([60] * samples, torch.zeros(samples, 64))
    scores = torch.randn(samples, 1 + len(method.branches()), vocabulary, device="cuda")
    greedy = Greedy(progress, vocabulary)
    following = torch.zeros(scores.shape[:2], dtype=torch.long, device="cuda").flatten()

    def work() -> None:
        greedy.take(progress.joined(scores), following)
        progress.step.zero_()

    return {"kind": f"choosing, {name}", "samples": samples, "ms": round(replayed(work), 4)}


def of_parts(parts: DecoderParts) -> list[dict[str, Any]]:
    """See `--parts`."""
    found = [attending(parts, 64, 660, 704)]
    found += [attending(parts, 8, *one) for one in ((660, 768), (660, 768, 576), (2992, 3072), (2992, 3072, 2928))]
    for rows in (1, 2, 64):
        found += edits(parts, rows, 704)
    return found + [choosing(*one, len(parts.head)) for one in (("greedy", 1), ("vcd", 1), ("rbd", 1), ("vcd", 32))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    parts = shape(8 if args.sweep or args.parts else 32, "cuda", args.tiny)
    report["read_tb_s"] = reading_rate()
    if args.parts:
        with torch.inference_mode():
            report["parts"] = of_parts(parts)
        for one in report["parts"]:
            print(json.dumps(one), flush=True)
    elif args.sweep:
        report["sweep"] = []
        for rows, tile in ((1, 1), (2, 16), (64, 64)):
            report["sweep"] += sweep(parts, rows, tile)
            for kind in dict.fromkeys(one["kind"] for one in report["sweep"]):
                mine = [one for one in report["sweep"] if one["kind"] == kind and one["rows"] == rows]
                for one in sorted(mine, key=lambda one: one["ms"])[:4]:
                    print(*one.values(), flush=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    else:
        report["steps"] = []
        for rows in (1, 2, 3, 8, 16, 32, 64):
            made = step_of(parts, rows, 645, 768)

            def work(made: fast.DecodeStep = made) -> None:
                made.run()
                made.length -= 1
                made.positions -= 1

            found = {"rows": rows, "ms": round(replayed(work), 4)}
            report["steps"].append(found)
            print(json.dumps(found), flush=True)
            del made
            torch.cuda.empty_cache()
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key not in ("sweep", "steps", "parts")})


if __name__ == "__main__":
    main()
