"""POPE through `mmattn.eval` from files to results: the shape of LLaVA-1.5-7B with random weights.

    python -m benchmarks.eval_speed --pictures 500 --out FILE

Pictures are those of the bundled scenes, questions the three splits; an answer ends after two tokens. Random words make
no difference to the time; reading files, preparing pictures, tokenising, scoring and writing are part of it.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoProcessor

import mmattn
from mmattn import scenes
from mmattn.bench.shapes import build
from mmattn.eval import STRATEGIES, Benchmark, Pope, evaluate, load_instances, provenance
from mmattn.eval import build as questions


def shaped(tiny: bool) -> mmattn.VLM:
    """The model, with the scenes' own words and pictures of 336 pixels, as LLaVA-1.5 takes them."""
    adapter, _ = build("llava-1.5-7b", "cuda" if torch.cuda.is_available() else "cpu", tiny)
    processor = AutoProcessor.from_pretrained(scenes.model_path("scenes-llava"))
    images = processor.image_processor
    images.size, images.crop_size = {"shortest_edge": 336}, {"height": 336, "width": 336}
    adapter.model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    return mmattn.wrap(adapter.model, processor)


def main(
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "greedy,vcd",
    pictures: int = 500,
    batch_size: int = 72,
    tiny: bool = False,
    out: Path | None = None,
) -> None:
    """Time each method and print seconds."""
    model = shaped(tiny)
    data = scenes.dataset("val", count=pictures)
    instances = load_instances(data.instances)
    asked: list[Benchmark] = [
        Pope(name, questions(instances, name), data.images, instances=instances, max_new_tokens=2)
        for name in STRATEGIES
    ]
    warm: list[Benchmark] = [Pope("warm", questions(instances, "random"), data.images, max_new_tokens=2, limit=12)]
    rows: list[dict[str, Any]] = []
    for name in methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            evaluate(model, warm, [name], Path(folder) / "warm", batch_size=batch_size, progress=False)  # compiles
            start = time.perf_counter()
            results = evaluate(model, asked, [name], Path(folder) / "run", batch_size=batch_size)
            seconds = time.perf_counter() - start
        spent = results["timing"]["methods"][name]
        total = sum(map(len, asked))
        rows.append(
            {
                "method": name, "questions": total, "distinct": spent["questions"], "seconds": round(seconds, 2),
                "seconds_generating": spent["seconds"], "seconds_for_9000": round(9000 * seconds / total, 1),
                "peak_mib": spent["peak_mib"],
            }
        )  # fmt: skip
        typer.echo(json.dumps(rows[-1]))
    if out is not None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        origin = {"device": device, "commit": provenance.commit(), "versions": provenance.versions()}
        out.write_text(json.dumps({"batch_size": batch_size, "rows": rows, **origin}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
