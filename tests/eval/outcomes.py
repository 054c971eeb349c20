"""What a benchmark makes of given answers, through the same steps as a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmattn.eval import further, stats
from mmattn.eval.listed import ListBenchmark
from mmattn.eval.types import Record


def records_of(benchmark: ListBenchmark, answers: Sequence[str] | Mapping[str, str]) -> list[Record]:
    """One record per question that has an answer: a list in their order, or by id."""
    found = []
    for index in range(len(benchmark)):
        item = benchmark.item(index)
        said = answers.get(item.id) if isinstance(answers, Mapping) else answers[index]
        if said is None:
            continue
        score = benchmark.score(item, said)
        shown = (benchmark.name, "m", item.id, item.image, item.prompt, "done")
        found.append(Record(*shown, answer=said, verdict=score.verdict, counts=score.counts, details=score.details))
    return found


def values_of(benchmark: ListBenchmark, answers: Sequence[str] | Mapping[str, str]) -> dict[str, Any]:
    """Metrics by name."""
    counts = stats.Counts.of(further.join(benchmark, records_of(benchmark, answers)))
    return {name: one.value for name, one in stats.estimates(counts, benchmark.metrics).items()}


def picture(path: Path) -> Path:
    """A small picture at that place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(path)
    return path
