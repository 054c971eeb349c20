"""Runs of grounding methods over a set of targets, beside chance and the model's own answer in words; they resume."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from mmattn.errors import MmattnError
from mmattn.eval import pointing, provenance, stats
from mmattn.eval.referring import Box, Target, Targets
from mmattn.eval.results import summarise
from mmattn.eval.store import RunFolder
from mmattn.eval.types import Record, Totals
from mmattn.eval.variants import Variant
from mmattn.grounding.locator import Locator
from mmattn.grounding.maps import Heads
from mmattn.grounding.ranking import Shown, rank_heads
from mmattn.grounding.regions import centre
from mmattn.images import open_image

if TYPE_CHECKING:
    from mmattn.vlm import VLM

FORMAT = "mmattn-ground/1"
WORDS, CHANCE = "words", "chance"
# How many of the best heads are tried together on the calibration set.
SIZES = (1, 2, 3, 5, 10)


def evaluate_grounding(
    model: VLM,
    targets: Targets,
    images: Path,
    methods: Mapping[str, Locator],
    out: Path,
    *,
    calibration: Mapping[str, Any] | None = None,
    variant: Variant | None = None,
    batch_size: int = 16,
    progress: bool = True,
    fresh: bool = False,
) -> dict[str, Any]:
    """Ask every query under every method, score, and write the run folder.

    Args:
        model: from `mmattn.load` or `mmattn.wrap`.
        targets: what to find.
        images: the folder of their pictures.
        methods: by label; the first one is what the others are compared with. "words" and "chance" are added: the
            place that the model's own answer to "Where is ...?" names, and a point drawn evenly.
        out: the run folder; what it holds already is kept if the settings are the same.
        calibration: how the heads were chosen, for the record.
        variant: how the pictures are damaged before they are shown.
        batch_size: queries at once.
        progress: show a bar on stderr.
        fresh: forget what the folder holds.

    Returns:
        What `results.json` holds.

    Raises:
        MmattnError: other settings in the folder, or no picture could be read.
    """
    for label in (WORDS, CHANCE):
        if label in methods:
            raise MmattnError(f"The method name {label} is taken", "Choose another label.")
    run = _Run(model, targets, images, methods, batch_size, variant)
    settings = run.settings(calibration)
    with RunFolder(out, settings, provenance.commit(), fresh=fresh) as folder:
        done = {record.key for record in folder.records}
        total = len(targets.targets) * len(run.labels)
        with tqdm(total=total, initial=len(done), unit="query", disable=not progress, smoothing=0.1) as bar:
            for records in run.records(done):
                folder.append(records)
                bar.update(len(records))
        results = summarise(settings, folder.commits, _grouped(folder.records, targets), run.groups, run.labels)
        folder.write("results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        folder.write("table.md", markdown(results))
    failed = [record for record in folder.records if record.status == "failed"]
    if failed and len(failed) == len(folder.records):
        raise MmattnError("No query could be asked; the first failed because: " + failed[0].reason)
    return results


def calibrate(
    model: VLM, targets: Targets, images: Path, method: Heads, batch_size: int = 16
) -> tuple[Heads, dict[str, Any]]:
    """`method` with the heads that do best on `targets`, and how they were chosen.

    Heads are ranked by pointing; of the best 1, 2, 3, 5 and 10 together those are kept whose mean map clicks right
    most often, fewer where equal. `targets` must not be reported on.
    """
    shown = shown_of(targets, images)
    ranked = rank_heads(model, shown, method, batch_size)
    tried: dict[int, float] = {}
    for size in SIZES:
        chosen = replace(method, chosen=tuple((one.layer, one.head) for one in ranked[:size]))
        hits = [
            found.point is not None and pointing.inside(found.point, truth)
            for one in shown
            for found, truth in zip(
                model.ground(one.image, list(one.queries), method=chosen, batch_size=batch_size), one.boxes, strict=True
            )
        ]
        tried[size] = sum(hits) / len(hits)
    best = max(tried, key=lambda size: (tried[size], -size))
    heads = tuple((one.layer, one.head) for one in ranked[:best])
    told = {
        "set": targets.name,
        "sha256": targets.sha256,
        "pictures": len(shown),
        "queries": len(targets.targets),
        "ranked": [[one.layer, one.head, round(one.pointing, 4)] for one in ranked[:10]],
        "click": {str(size): round(value, 4) for size, value in tried.items()},
        "chosen": [list(pair) for pair in heads],
    }
    return replace(method, chosen=heads), told


def shown_of(targets: Targets, images: Path) -> list[Shown]:
    """The targets by picture, in the order of the set."""
    by_image: dict[str, list[Target]] = {}
    for one in targets.targets:
        by_image.setdefault(one.image, []).append(one)
    return [
        Shown(images / name, tuple(one.query for one in some), tuple(one.box for one in some))
        for name, some in by_image.items()
    ]


@dataclass(frozen=True)
class Group:
    """All targets, or those of one kind, as one section of the results."""

    name: str

    @property
    def max_new_tokens(self) -> int:
        return 0

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """See `pointing.metrics`."""
        return pointing.metrics(totals)


def _grouped(records: Sequence[Record], targets: Targets) -> list[Record]:
    """The records, and again under the name of their kind."""
    kinds = {one.id: one.kind for one in targets.targets if one.kind}
    again = [replace(one, benchmark=f"{one.benchmark}-{kinds[one.id]}") for one in records if one.id in kinds]
    return [*records, *again]


@dataclass(frozen=True)
class _Run:
    """One run: who is asked about what, and how."""

    model: VLM
    targets: Targets
    images: Path
    methods: Mapping[str, Locator]
    batch_size: int
    variant: Variant | None = None

    @property
    def labels(self) -> list[str]:
        return [*self.methods, WORDS, CHANCE]

    @property
    def groups(self) -> list[Any]:
        kinds = dict.fromkeys(one.kind for one in self.targets.targets if one.kind)
        return [Group(self.targets.name), *(Group(f"{self.targets.name}-{kind}") for kind in kinds)]

    def settings(self, calibration: Mapping[str, Any] | None) -> dict[str, Any]:
        """Everything that decides a number; batch size is not in it."""
        targets = self.targets.targets
        return {
            "format": FORMAT,
            "model": self.model.describe(),
            "methods": {
                **{label: method.settings() for label, method in self.methods.items()},
                WORDS: {"prompt": _where("...")},
                CHANCE: {},
            },
            "calibration": dict(calibration) if calibration else None,
            **({"variant": {"name": self.variant.name, "amount": self.variant.amount}} if self.variant else {}),
            "benchmarks": {
                self.targets.name: {
                    "benchmark": "grounding",
                    "images": len({one.image for one in targets}),
                    "questions": len(targets),
                    "skipped": self.targets.skipped,
                    "longest_side": self.targets.longest,
                    "sha256": self.targets.sha256,
                }
            },
            "versions": provenance.versions(),
            "bootstrap": {"unit": "image", "resamples": stats.RESAMPLES, "level": stats.LEVEL, "seed": stats.SEED},
        }

    def records(self, done: set[tuple[str, str, str]]) -> Iterator[list[Record]]:
        """What is not done yet, a picture at a time."""
        name = self.targets.name
        for image, group in groupby(sorted(self.targets.targets, key=lambda one: one.image), lambda one: one.image):
            some = list(group)
            waiting = {label: [one for one in some if (name, label, one.id) not in done] for label in self.labels}
            if not any(waiting.values()):
                continue
            try:
                picture, scale = _opened(self.images / image, self.targets.longest)
            except MmattnError as error:
                yield [self._failed(label, one, str(error)) for label, left in waiting.items() for one in left]
                continue
            if self.variant:
                picture = self.variant.picture(picture, image)
            for label, left in waiting.items():
                if left:
                    yield self._asked(label, left, picture, scale)

    def _asked(self, label: str, some: Sequence[Target], picture: Image.Image, scale: float) -> list[Record]:
        queries = [one.query for one in some]
        truths = [_scaled(one.box, scale) for one in some]
        if self.variant:
            truths = [self.variant.box(truth, picture.size) for truth in truths]
        start = time.perf_counter()
        records = []
        if label == CHANCE:
            records = [
                self._record(label, one, "", pointing.chance(truth, picture.size), {})
                for one, truth in zip(some, truths, strict=True)
            ]
        elif label == WORDS:
            prompts = [_where(query) for query in queries]
            answers = self.model.generate(picture, prompts, max_new_tokens=16, batch_size=self.batch_size)
            for one, truth, answer in zip(some, truths, answers, strict=True):
                place = pointing.place_in_words(answer.text, picture.size)
                point = place and centre(place)
                counts = pointing.score(point, point, place, truth)
                records.append(self._record(label, one, _where(one.query), counts, {"box": place}, answer.text))
        else:
            made = self.model.ground(picture, queries, method=self.methods[label], batch_size=self.batch_size)
            for one, truth, found in zip(some, truths, made, strict=True):
                counts = pointing.score(found.point, found.peak, found.boxes[0] if found.boxes else None, truth)
                told = found.to_json()
                details = {key: told[key] for key in ("point", "peak", "reason", "source")}
                details["box"] = told["boxes"][0] if told["boxes"] else None
                records.append(self._record(label, one, found.prompt, counts, details, found.answer))
        seconds = round((time.perf_counter() - start) / len(some), 6)
        return [replace(one, seconds=seconds) for one in records]

    def _record(
        self,
        label: str,
        target: Target,
        prompt: str,
        counts: Mapping[str, float],
        details: Mapping[str, Any],
        answer: str = "",
    ) -> Record:
        verdict = "" if label == CHANCE else "right" if counts["click"] else "wrong"
        return Record(
            self.targets.name, label, target.id, target.image, prompt, "done",
            answer=answer, verdict=verdict, counts=counts, details={"truth": list(target.box), **details},
        )  # fmt: skip

    def _failed(self, label: str, target: Target, reason: str) -> Record:
        return Record(self.targets.name, label, target.id, target.image, target.query, "failed", reason)


def _where(query: str) -> str:
    return f"Where is {query} in the image?"


def _opened(path: Path, longest: int) -> tuple[Image.Image, float]:
    """The picture, shrunk so that its longer side is at most `longest` (0: as it is), and by what factor."""
    picture = open_image(path)
    scale = longest / max(picture.size) if 0 < longest < max(picture.size) else 1.0
    if scale == 1:
        return picture, scale
    size = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC), scale


def _scaled(box: Box, scale: float) -> Box:
    return box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale


COLUMNS: dict[str, str] = {
    "click": "click accuracy",
    "pointing": "pointing accuracy",
    "iou50": "IoU at least 0.5",
    "box_hit": "box hit",
    "empty": "empty",
}


CAPTION = "In percent; in brackets the 95 % bootstrap interval over pictures."


def rows(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Sections of the table: a title, and for each method its name and one cell per column, in percent."""
    found = []
    for name, by_method in results["metrics"].items():
        described = results["benchmarks"].get(name)
        size = f" ({described['images']} pictures, {described['questions']} queries)" if described else ""
        lines = [(label, *(_cell(values.get(column)) for column in COLUMNS)) for label, values in by_method.items()]
        found.append((f"{name}{size}", lines))
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """The table for a document."""
    lines = [_line(("method", *COLUMNS.values())), _line(("---", *["---:"] * len(COLUMNS)))]
    for title, section in rows(results):
        lines.append(_line((f"**{title}**", *[""] * len(COLUMNS))))
        lines.extend(map(_line, section))
    return "\n".join(lines) + f"\n\n{CAPTION}\n"


def table(results: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    grid = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    for index, title in enumerate(("method", *COLUMNS.values())):
        grid.add_column(title, justify="left" if index == 0 else "right")
    for title, section in rows(results):
        grid.add_row(Text(title, style="bold"))
        for name, *cells in section:
            grid.add_row(Text(f"  {name}"), *cells)
        grid.add_section()
    return grid


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(estimate: Mapping[str, float | None] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    low, high = estimate["low"], estimate["high"]
    text = f"{100 * estimate['value']:.1f}"
    return text if low is None or high is None else f"{text} ({100 * low:.1f}..{100 * high:.1f})"
