"""Time and memory of capture and of an edit as the prompt grows: they should stay linear in its length.

    python -m benchmarks.growth --out growth.json [--lengths 600,2500,10000,30000] [--tiny]

The decoder of Qwen2.5-VL-7B with random weights; a picture of as many image tokens as are asked for, whose features are
random, too: the vision tower plays no part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mmattn.adapters import Pixels
from mmattn.bench import build, measure
from mmattn.bench.shapes import WORDS
from mmattn.decoding import resolve
from mmattn.eval.provenance import commit, versions

MERGE = 2


def picture(tokens: int) -> Pixels:
    """A square picture of about `tokens` image tokens."""
    side = max(round(tokens**0.5), 2) * MERGE
    return Pixels("a", torch.zeros(1), (side * 14, side * 14), (1, side, side))


def main(
    out: Annotated[Path, typer.Option()],
    lengths: str = "600,2500,10000,30000",
    methods: str = "greedy,boost",
    steps: int = 16,
    tiny: bool = False,
) -> None:
    """Measure, and write the figures after each length."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter, _ = build("qwen2.5-vl-7b", device, tiny)
    width, kind = adapter.model.config.text_config.hidden_size, adapter.model.dtype

    def encode(pictures: Sequence[Pixels], _shares: Any = None) -> list[torch.Tensor]:
        return [torch.randn(adapter.views(one)[0], width, device=device, dtype=kind) * 0.02 for one in pictures]

    adapter.encode = encode  # type: ignore[method-assign]
    rows: list[dict[str, Any]] = []
    for length in map(int, lengths.split(",")):
        pixels = picture(length - WORDS)
        chosen = [resolve(one) for one in methods.split(",")]
        for figures in measure(adapter, pixels, chosen, [1], steps=steps, repeats=2, capture=True):
            rows.append({"image_tokens": adapter.views(pixels)[0], **dataclasses.asdict(figures)})
            print(rows[-1], flush=True)
        where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        out.write_text(
            json.dumps({"device": where, "commit": commit(), "versions": versions(), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    typer.run(main)
