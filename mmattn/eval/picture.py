"""One question of a run as a picture: where the model looked when it answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.eval.types import Benchmark, Item, Record
from mmattn.images import open_image

SMALLEST, BEST, LARGEST = 0.02, 0.08, 0.25


def choose(benchmarks: Sequence[Benchmark], records: Iterable[Record], method: str) -> tuple[Item, Record] | None:
    """A rightly answered question about an object that is there once and is easy to see; None if there is none.

    Of these the one whose object covers closest to 8 % of the image (large enough to recognise, small enough to be
    missed), then the first in question order: the same one on every run.
    """
    answered = {(r.benchmark, r.id): r for r in records if r.method == method and r.status == "done"}
    best: tuple[float, Item, Record] | None = None
    for benchmark in benchmarks:
        for index in range(len(benchmark)):
            item = benchmark.item(index)
            record = answered.get((benchmark.name, item.id))
            share = _share(item.meta)
            right = record is not None and item.meta.get("label") == "yes" == record.verdict
            if record is None or not right or not SMALLEST <= share <= LARGEST:
                continue
            if best is None or abs(share - BEST) < best[0]:
                best = (abs(share - BEST), item, record)
    return best and best[1:]


def draw(model: Any, item: Item, record: Record, path: Path, heatmap: Mapping[str, Any] | None = None) -> Path:
    """Write the image of `item` under the attention of the token that decided the answer.

    `heatmap` holds arguments of the heat map, such as layers and heads; by default it is the mean of all.
    """
    from mmattn.grounding import save_overlay

    image = open_image(item.path)
    attention = model.attend(image, item.prompt)
    title = f"{item.prompt} {record.answer}"
    save_overlay(path, image, attention.heatmap(**(heatmap or {})), title=title, boxes=item.meta.get("boxes", ()))
    return path


def _share(meta: Mapping[str, Any]) -> float:
    """Part of the image that the one box of the object covers; 0 when there are several boxes or none."""
    boxes, size = meta.get("boxes", ()), meta.get("size")
    if len(boxes) != 1 or not size or 0 in size:
        return 0.0
    left, top, right, bottom = boxes[0]
    return float((right - left) * (bottom - top) / (size[0] * size[1]))
