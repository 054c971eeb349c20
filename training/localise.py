"""Which head points best at things: chosen on the tune split, reported on val. python -m training.localise --model NAME

For a present object, does the strongest cell of the attention of the prompt's last token lie inside one of its boxes?
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmattn
from mmattn.scenes.catalog import article
from training.evaluate import ASK, Picture, load


def hits(vlm: mmattn.VLM, pictures: Sequence[Picture], batch: int) -> Tensor:
    """The share of questions whose peak lies in the object, (layers, heads)."""
    jobs = [(picture, name) for picture in pictures for name in list(picture.boxes)[:3]]
    answers = vlm.generate(
        [picture.image for picture, _ in jobs], [ASK.format(a=article(name)) for _, name in jobs],
        max_new_tokens=1, batch_size=batch, capture=mmattn.Capture(), stop_token_ids=[],
    )  # fmt: skip
    found = []
    for (picture, name), answer in zip(jobs, answers, strict=True):
        read = answer.attention
        assert read is not None
        share, view = read.shares[0], read.layout.images[0].views[0]
        cells = read.weights[:, :, 0] if share is None else read.weights[:, :, 0] @ share
        best = cells.argmax(-1)
        x, y = view.to_pixels.point(0.5, 0.5)
        x = x + view.to_pixels.scale_x * (best % view.columns)
        y = y + view.to_pixels.scale_y * (best // view.columns)
        inside = torch.zeros_like(best, dtype=torch.bool)
        for left, upper, right, lower in picture.boxes[name]:
            inside |= (x >= left) & (x < right) & (y >= upper) & (y < lower)
        found.append(inside.float())
    return torch.stack(found).mean(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    vlm = mmattn.load(args.model)
    chosen, measured = (hits(vlm, load(split, args.count, None), args.batch) for split in ("tune", "val"))
    layer, head = divmod(int(chosen.argmax()), chosen.shape[1])
    report: dict[str, Any] = {
        "model": args.model, "pictures": args.count, "layer": layer, "head": head,
        "tune": round(float(chosen[layer, head]), 4), "val": round(float(measured[layer, head]), 4),
        "all_heads_val": [[round(value, 3) for value in row] for row in measured.tolist()],
    }  # fmt: skip
    print(json.dumps(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
