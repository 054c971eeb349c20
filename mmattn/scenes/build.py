"""Writing a split to disk: pictures as PNG, annotations as COCO JSON, all or nothing."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmattn.scenes.coco import annotations, captions, categories, present_slots
from mmattn.scenes.layout import CANVAS, TRAIN, VAL_BROKEN, VAL_TYPICAL, Knobs, Layout, sample
from mmattn.scenes.render import draw

__all__ = ["SEEDS", "SPLITS", "WORLD", "SceneSet", "dataset", "pictures"]

WORLD = "world1"  # part of the folder name; raise it whenever the same seed would draw other bytes
SEEDS = {"val": 20_001, "tune": 30_001, "train": 10_001}
_PARTS: dict[str, dict[str, Knobs]] = {
    "train": {"typical": TRAIN},
    "val": {"typical": VAL_TYPICAL, "broken": VAL_BROKEN},
    "tune": {"typical": VAL_TYPICAL, "broken": VAL_BROKEN},
}
SPLITS = tuple(_PARTS)
_CHUNK = 64


@dataclass(frozen=True)
class SceneSet:
    """Where a split lies: its folder, the folder of pictures, and two COCO JSON files."""

    root: Path
    images: Path
    instances: Path
    captions: Path


def _candidates(seed: int, knobs: Knobs, clean: bool) -> Iterator[tuple[Tensor, Layout, int, Tensor]]:
    """Pictures in order of their number. ``clean`` skips those with fewer than three categories, and those with an
    object hidden so far that it would not be annotated: no question about them may have a doubtful answer.
    """
    start = 0
    while True:
        layout = sample(seed, torch.arange(start, start + _CHUNK), knobs)
        for row in range(_CHUNK):
            if clean and len(set(layout.category[row].tolist()) - {-1}) < 3:
                continue
            pixels, owner = draw(layout, row)
            slots = present_slots(layout, row, owner)
            drawn = int((layout.category[row] >= 0).sum())
            if slots and (not clean or len(slots) == drawn):
                yield pixels, layout, row, owner
        start += _CHUNK


def pictures(split: str, seed: int, count: int) -> Iterator[tuple[str, Tensor, Layout, int, Tensor]]:
    """``count`` pictures of a split, its parts taking turns: part, pixels (3, 336, 336) uint8, the layout and row
    they come from, and the object slot on top of each pixel (336, 336).
    """
    parts = _PARTS[split]
    clean = split != "train"
    streams = {part: _candidates(seed * 16 + i, knobs, clean) for i, (part, knobs) in enumerate(parts.items())}
    for number in range(count):
        part = list(parts)[number % len(parts)]
        yield part, *next(streams[part])


def _write(folder: Path, split: str, seed: int, count: int) -> None:
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    sentences: list[dict[str, Any]] = []
    with ThreadPoolExecutor(2) as pool:
        saves = []
        for number, (part, pixels, layout, row, owner) in enumerate(pictures(split, seed, count), 1):
            name = f"scenes_{split}_{number:06d}.png"
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            saves.append(pool.submit(picture.save, folder / "images" / name, compress_level=3))
            images.append({"id": number, "file_name": name, "width": CANVAS, "height": CANVAS, "part": part})
            objects += annotations(layout, row, owner, number, len(objects) + 1)
            mine = [record for record in objects[-8:] if record["image_id"] == number]
            sentences += captions(mine, number, len(sentences) + 1)
        for save in saves:
            save.result()
    info = {"description": f"mmattn scenes, split {split}", "version": WORLD, "seed": seed, "count": count}
    instances = {"info": info, "images": images, "categories": categories(), "annotations": objects}
    (folder / "instances.json").write_text(json.dumps(instances, separators=(",", ":")))
    (folder / "captions.json").write_text(
        json.dumps({"info": info, "images": images, "annotations": sentences}, separators=(",", ":"))
    )


def home() -> Path:
    """Where generated sets are kept."""
    return Path(os.environ.get("MMATTN_HOME") or Path.home() / ".cache" / "mmattn")


def dataset(split: str = "val", root: str | Path | None = None, seed: int | None = None, count: int = 400) -> SceneSet:
    """The folder of a split ("val", "tune" or "train"), generated at first use.

    The same (split, seed, count) gives the same bytes of pixels and annotations on every machine. ``root`` is the
    folder to keep splits in (default: ``$MMATTN_HOME`` or ``~/.cache/mmattn``). Each record of ``images`` carries a
    ``part``: "typical" (categories together as in training) or "broken" (partners missing, themes mixed).

    Raises:
        ValueError: unknown split, or a count below 1.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 picture")
    seed = SEEDS[split] if seed is None else seed
    place = Path(root) if root is not None else home()
    target = place / f"scenes-{WORLD}-{split}-{seed}-{count}"
    if not target.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".scenes-", dir=place))
        try:
            _write(draft, split, seed, count)
            draft.chmod(0o755)
            publish(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return SceneSet(target, target / "images", target / "instances.json", target / "captions.json")


def publish(draft: Path, target: Path) -> None:
    """Move a finished folder to its place; whoever is first wins."""
    try:
        draft.rename(target)
    except OSError:
        if not target.is_dir():  # else another process finished the same set first
            raise
