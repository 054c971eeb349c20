"""COCO-format records of drawn pictures: boxes, run-length masks, captions."""

from typing import Any

import torch
from torch import Tensor

from mmattn.scenes.captions import Mention, place_of, references
from mmattn.scenes.catalog import CATEGORIES
from mmattn.scenes.layout import CANVAS, SLOTS, Layout
from mmattn.scenes.render import areas_of, visible

__all__ = ["annotations", "categories", "mentions_of", "present_slots", "run_lengths"]


def categories() -> list[dict[str, Any]]:
    """The ``categories`` table, with COCO's own ids."""
    return [{"id": c.id, "name": c.name, "supercategory": c.supercategory} for c in CATEGORIES]


def run_lengths(mask: Tensor) -> list[int]:
    """COCO's uncompressed run-length code of a bool mask (H, W): runs in column-major order, zeros first."""
    flat = torch.cat([torch.zeros(1, dtype=torch.bool), mask.T.reshape(-1)])
    edges = (flat[1:] != flat[:-1]).nonzero().flatten()
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), edges, torch.tensor([mask.numel()])])
    counts: list[int] = bounds.diff().tolist()
    return counts


def present_slots(layout: Layout, row: int, owner: Tensor) -> list[int]:
    """Slots of a picture whose object shows enough to be annotated; ``owner`` as :func:`render.draw` returns it."""
    shown = torch.bincount(owner.flatten() + 1, minlength=SLOTS + 1)[1:]
    keep = visible(layout.category[row], shown, areas_of(layout, row))
    found: list[int] = keep.nonzero().flatten().tolist()
    return found


def annotations(layout: Layout, row: int, owner: Tensor, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """One annotation per present object, in reading order; boxes XYWH in pixels."""
    records: list[dict[str, Any]] = []
    for slot in present_slots(layout, row, owner):
        mask = owner == slot
        ys, xs = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        left, top = int(xs[0]), int(ys[0])
        records.append(
            {
                "image_id": image_id,
                "category_id": CATEGORIES[int(layout.category[row, slot])].id,
                "bbox": [left, top, int(xs[-1]) - left + 1, int(ys[-1]) - top + 1],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [CANVAS, CANVAS], "counts": run_lengths(mask)},
            }
        )
    records.sort(key=lambda r: (_place(r), r["category_id"], r["bbox"]))
    for number, record in enumerate(records):
        record["id"] = first_id + number
    return records


def _place(record: dict[str, Any]) -> int:
    x, y, width, height = record["bbox"]
    return place_of(x + width / 2, y + height / 2, CANVAS)


def mentions_of(records: list[dict[str, Any]]) -> list[Mention]:
    """The annotated categories in the order of their first instance."""
    by_id = {category.id: category for category in CATEGORIES}
    mentions: dict[int, Mention] = {}
    for record in records:
        category = by_id[record["category_id"]]
        seen = mentions.get(category.id)
        count, place = (seen.count + 1, seen.place) if seen else (1, _place(record))
        mentions[category.id] = Mention(category.name, category.plural, count, place)
    return list(mentions.values())


def captions(records: list[dict[str, Any]], image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Five reference captions of a picture."""
    sentences = references(mentions_of(records))
    return [{"id": first_id + i, "image_id": image_id, "caption": text} for i, text in enumerate(sentences)]
