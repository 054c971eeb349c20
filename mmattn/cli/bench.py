"""`mmattn bench`: how fast this machine decodes, and how near to what its memory allows."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from mmattn.cli import options
from mmattn.errors import MmattnError


def bench(
    model: options.Model = "scenes-llava",
    random: Annotated[
        str | None, typer.Option(help="A published model's shape with random weights instead, e.g. llava-1.5-7b.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Comma-separated; the first one is the yardstick.")] = "greedy,vcd",
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated numbers of samples.")] = "1,8",
    words: Annotated[int, typer.Option(min=9, help="Text tokens of each prompt, beside its picture's.")] = 64,
    steps: Annotated[int, typer.Option(min=1, max=options.LONGEST, help="Tokens to be timed.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Of which medians are taken.")] = 3,
    capture: Annotated[bool, typer.Option(help="Also with the attention rows of all layers kept.")] = False,
    fast: Annotated[bool, typer.Option(help="--no-fast: through the model's own modules.")] = True,
    tiny: Annotated[bool, typer.Option(help="With --random: two layers only, as a rehearsal.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time per step, speed, memory and share of the memory bus, per method and batch size, beside transformers."""
    import torch

    from mmattn.bench import MODELS, Figures, build, measure
    from mmattn.decoding import resolve
    from mmattn.eval.provenance import commit, versions

    chosen = [resolve(one.strip()) for one in methods.split(",")]
    sizes = _numbers(batch_sizes)
    if random is not None and random not in MODELS:
        raise MmattnError(f"There is no shape {random!r}", f"Choose one of: {', '.join(MODELS)}.")
    if random is not None:
        adapter, pixels = build(random, device or ("cuda" if torch.cuda.is_available() else "cpu"), tiny)
    else:
        from PIL import Image

        adapter = options.load_model(model, device, dtype).adapter
        (pixels,) = adapter.preprocess({"grey": Image.new("RGB", (336, 336), (128, 128, 128))})
        pixels = adapter.conditioned(pixels, "-")
    if not as_json:
        options.say(_line("", "batch", "prefill ms", "ms/step", "tokens/s", "peak GiB", "share of floor"))
    first: dict[int, float] = {}

    def show(one: Figures) -> None:
        if as_json:
            return
        if one.what == chosen[0].label:
            first[one.batch] = one.step_ms
        ratio = f" x{one.step_ms / first[one.batch]:.3f}" if one.batch in first else ""
        share = "-" if one.share_of_floor is None else f"{one.share_of_floor:.2f}"
        cells = (
            one.batch,
            one.prefill_ms or "-",
            f"{one.step_ms}{ratio}",
            one.tokens_per_s,
            one.peak_gib or "-",
            share,
        )
        options.say(_line(one.what, *cells))

    figures = measure(
        adapter, pixels, chosen, sizes, words=words, steps=steps, repeats=repeats, fast=fast, capture=capture,
        on_figures=show,
    )  # fmt: skip
    report: dict[str, Any] = {
        "model": random or model, "random_weights": random is not None, "fast": fast, "words": words, "steps": steps,
        "repeats": repeats, "torch": torch.__version__, "commit": commit(), "versions": versions(),
        "device": torch.cuda.get_device_name(adapter.device) if adapter.device.type == "cuda" else platform.machine(),
        "figures": [dataclasses.asdict(one) for one in figures],
    }  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        options.emit(report)


def _numbers(text: str) -> list[int]:
    try:
        sizes = [int(one) for one in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise MmattnError(f"--batch-sizes must be whole numbers from 1 on, not {text!r}", "For example: 1,8,32.")
    return sizes


def _line(what: str, *cells: object) -> str:
    return f"{what:<34}" + "".join(f"{cell!s:>18}" for cell in cells)
