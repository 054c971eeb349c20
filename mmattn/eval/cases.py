"""Questions that a method wins or loses against the first one, with pictures small enough to be part of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmattn.errors import MmattnError, first_line
from mmattn.eval.compare import is_right, pairs
from mmattn.eval.types import Benchmark, Item, Record
from mmattn.images import open_image

EACH = 3  # wins, and as many losses, of each method in each benchmark
MOST = 24
SIDE = 288


@dataclass(frozen=True)
class Case:
    """One question under the first method (`base`) and another (`ours`); `gain` is above 0 where `ours` wins."""

    item: Item
    ours: Record
    base: Record
    gain: float


def choose(benchmarks: Sequence[Benchmark], records: Iterable[Record], labels: Sequence[str]) -> list[Case]:
    """The clearest wins and losses, of different pictures where there are some, in question order where equal."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.benchmark, record.method), []).append(record)
    found: list[Case] = []
    for benchmark in benchmarks:
        items = {item.id: item for item in map(benchmark.item, range(len(benchmark)))}
        base = groups.get((benchmark.name, labels[0]), [])
        for label in labels[1:]:
            both = pairs(groups.get((benchmark.name, label), []), base)
            cases = [Case(items[one.id], one, other, _gain(one, other)) for one, other in both]
            for sign in (1, -1):
                found += _clearest([case for case in cases if sign * case.gain > 0])
    return found[:MOST]


def _clearest(cases: Sequence[Case]) -> list[Case]:
    ranked = sorted(cases, key=lambda case: -abs(case.gain))
    first: dict[str, Case] = {}
    for case in ranked:
        first.setdefault(case.item.image, case)
    again = [case for case in ranked if first[case.item.image] is not case]
    return [*first.values(), *again][:EACH]


def _gain(ours: Record, base: Record) -> float:
    """How much better `ours` is: right against wrong, or fewer invented mentions; 0 where neither is known."""
    right, before = is_right(ours), is_right(base)
    if right is not None and before is not None:
        return float(right) - float(before)
    invented = "hallucinated_mentions"
    return base.counts.get(invented, 0.0) - ours.counts.get(invented, 0.0)


def drawn(model: Any, case: Case, heatmap: Mapping[str, Any] | None = None) -> dict[str, str]:
    """`image` and `map` as data addresses: the picture, and the attention under `ours` laid over it.

    The attention of the token that decides a short answer; of a caption, the mean over its tokens. `problem` says why
    something is missing.
    """
    from mmattn.grounding.overlay import overlay

    try:
        picture = open_image(case.item.path)
        pictures = {"image": _address(picture)}
    except MmattnError as error:
        return {"problem": str(error)}
    answer = case.ours.answer if is_right(case.ours) is None and case.ours.answer else None
    try:
        attention = model.attend(picture, case.item.prompt, answer, method=case.ours.method)
        pictures["map"] = _address(overlay(picture, attention.heatmap(**(heatmap or {}))))
    except (MmattnError, RuntimeError, MemoryError) as error:  # the page is not lost over a picture
        pictures["problem"] = f"No heat map: {first_line(error)}"
    return pictures


def _address(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
