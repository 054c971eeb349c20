"""Do words look at what they name, and does a latent draw a model to a place? On the scenes' val split.

    python -m benchmarks.places --model scenes-llava --out benchmarks/results/places-scenes-llava.json

Words: how often the place of an object word of a greedy caption lies in the box of that object, where the picture has
exactly one. Referring: one such object of each picture, the last in reading order, whose box is given; is it the first
that the caption names?
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmattn
from mmattn import scenes
from mmattn.adapters import Sample
from mmattn.eval import load_instances, stats
from mmattn.eval.chair import PROMPT
from mmattn.eval.objects import vocabulary
from mmattn.eval.pointing import inside
from mmattn.eval.referring import Box
from mmattn.eval.types import Record, Totals, ratio
from mmattn.referring import PRESETS, ControlMLLM
from mmattn.signals import read
from mmattn.signals.words import spelling

# The published versions, and a longer way that gives up neither early nor after a few steps.
VERSIONS = {**PRESETS, "ours": ControlMLLM(steps=20, rate=0.03, optimiser="adam", momentum=1.0, change=10)}
Pictures = Sequence[tuple[Path, dict[str, Box]]]


def pictures(count: int) -> Pictures:
    """The first so many of val with the boxes of objects that are there once, in reading order."""
    data = scenes.dataset("val")
    known = load_instances(data.instances)
    return [
        (data.images / name, {kind: boxes[0] for kind, boxes in known.boxes[name].items() if len(boxes) == 1})
        for name in known.images[:count]
    ]


def rates(records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """Sums of counts divided by how many were asked, with intervals over pictures."""

    def metrics(totals: Totals) -> dict[str, Any]:
        return {name: ratio(totals[name], totals["asked"]) for name in names}

    return {name: one.to_json() for name, one in stats.estimates(stats.Counts.of(records), metrics).items()}


def record(image: str, **counts: float) -> Record:
    """Counts of one picture."""
    return Record("places", "", image, image, "", "done", counts=counts)


def words(vlm: mmattn.VLM, some: Pictures, batch: int) -> dict[str, Any]:
    """How often the place of a true object word lies in its box, by all heads and by the model's grounding heads."""
    records = []
    for start in range(0, len(some), batch):
        chunk = some[start : start + batch]
        answers = vlm.generate([path for path, _ in chunk], [PROMPT] * len(chunk), max_new_tokens=64, batch_size=batch)
        samples = [
            Sample((mmattn.open_image(path),), PROMPT, one.token_ids)
            for (path, _), one in zip(chunk, answers, strict=True)
        ]
        both = [read(vlm.adapter, samples, heads) for heads in (None, vlm.grounding_heads)]
        for (path, boxes), every, best in zip(chunk, *both, strict=True):
            for mention in vocabulary().mentions(every.text):
                if mention.category in boxes:
                    at = list(spelling(every.ranges, (mention.start, mention.end)))
                    hits = [inside(one.looked.peak(rows=at), boxes[mention.category]) for one in (every, best)]
                    records.append(record(path.name, asked=1, all_heads=hits[0], grounding_heads=hits[1]))
    return {"words": len(records), **rates(records, ("all_heads", "grounding_heads"))}


def referring(vlm: mmattn.VLM, some: Pictures) -> dict[str, Any]:
    """Attention in the box and first words, without and with each version's latent."""
    found: dict[str, Any] = {}
    plain = vlm.generate([path for path, _ in some], [PROMPT] * len(some), max_new_tokens=64)
    for name, version in VERSIONS.items():
        start, records = time.perf_counter(), []
        for (path, boxes), before in zip(some, plain, strict=True):
            if not boxes:
                continue
            kind = list(boxes)[-1]
            after = vlm.refer(path, PROMPT, box=boxes[kind], version=version, max_new_tokens=64)
            counts = {"asked": 1.0, "attention_before": after.activations[0], "attention_after": after.activations[-1]}
            for when, text in (("before", before.text), ("after", after.text)):
                named = [mention.category for mention in vocabulary().mentions(text)]
                counts[f"first_{when}"] = float(named[:1] == [kind])
                counts[f"named_{when}"] = float(kind in named)
            records.append(record(path.name, **counts))
        fields = [field for field in records[0].counts if field != "asked"]
        seconds = (time.perf_counter() - start) / len(records)
        found[name] = {**rates(records, fields), "seconds": round(seconds, 2)}
    return {"queries": len(records), **found}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    vlm = mmattn.load(args.model)
    some = pictures(args.count)
    report = {"model": args.model, "pictures": args.count, "words": words(vlm, some, args.batch)}
    report["referring"] = referring(vlm, some)
    print(json.dumps(report, indent=1))
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
