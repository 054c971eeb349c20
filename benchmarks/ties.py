"""Half precision: how often do answers of a batch differ from one-by-one answers, and how close were the two tokens?

    python -m benchmarks.ties --model scenes-llava --dtype bfloat16 --count 100 --out ties.json

A difference is a tie if, one by one, the scores of the two tokens are closer than the rounding of their size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import mmattn
from mmattn import scenes
from mmattn.adapters import Sample

PROMPTS = {"Please help me describe the image in detail.": 64, "Is there a dog in the image?": 8}


def gap(vlm: mmattn.VLM, picture: Any, prompt: str, prefix: tuple[int, ...], tokens: tuple[int, int]) -> float:
    """Difference of the scores of two tokens after `prefix`, one by one, in units of rounding at their size."""
    adapter = vlm.adapter
    sample = Sample((mmattn.open_image(picture),), prompt, prefix or None)
    prepared = adapter.prepare([sample])
    with torch.inference_mode(), adapter.session():
        batch = adapter.embed(prepared, [adapter.encode(prepared[0].pixels)])
        scores = adapter.logits(adapter.decode(batch)[:, -1])[0]
    first, second = scores[tokens[0]], scores[tokens[1]]
    step = torch.finfo(vlm.model.dtype).eps * max(first.abs().item(), second.abs().item())
    return abs(float(first - second)) / step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    vlm = mmattn.load(args.model, dtype=args.dtype)
    pictures = [str(path) for path in sorted(scenes.dataset("val").images.iterdir())[: args.count]]
    report: dict[str, Any] = {
        "model": args.model,
        "dtype": args.dtype,
        "batch": args.batch,
        "device": str(vlm.adapter.device),
    }
    for prompt, longest in PROMPTS.items():
        settings: dict[str, Any] = {"max_new_tokens": longest}
        together = vlm.generate(pictures, [prompt] * len(pictures), batch_size=args.batch, **settings)
        alone = vlm.generate(pictures, [prompt] * len(pictures), batch_size=1, **settings)
        gaps = []
        for picture, one, other in zip(pictures, together, alone, strict=True):
            pairs = list(zip(one.token_ids, other.token_ids, strict=False))
            at = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
            if at is not None:
                gaps.append(round(gap(vlm, picture, prompt, one.token_ids[:at], pairs[at]), 2))
        report[prompt] = {
            "answers": len(pictures), "tokens": sum(len(one.token_ids) for one in alone),
            "different_answers": sum(a.token_ids != b.token_ids for a, b in zip(together, alone, strict=True)),
            "gaps_in_roundings": gaps,
        }  # fmt: skip
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
