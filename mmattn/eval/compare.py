"""Two methods on the same questions: which of them is right where the other is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmattn.eval import further, stats
from mmattn.eval.types import Benchmark, Record


def is_right(record: Record) -> bool | None:
    """Whether an answer is right; None where the benchmark knows no right or wrong, or nothing was answered."""
    right = record.details.get("correct")
    return right if record.status == "done" and isinstance(right, bool) else None


def pairs(ours: Iterable[Record], base: Iterable[Record]) -> list[tuple[Record, Record]]:
    """(ours, base) for each question that both answered, in the order of `base`."""
    found: dict[tuple[str, str], Record] = {(one.benchmark, one.id): one for one in ours if one.status == "done"}
    done = [one for one in base if one.status == "done"]
    return [(found[one.benchmark, one.id], one) for one in done if (one.benchmark, one.id) in found]


def mcnemar(ours: Sequence[Record], base: Sequence[Record]) -> dict[str, Any] | None:
    """McNemar's exact test: of the questions that one method alone answers rightly, is one half each method's?

    Returns:
        `only_this` and `only_first`, how many each answers alone, and the two-sided binomial `p`; None where there is
        no right or wrong. It takes questions for independent, also those about one picture.
    """
    rights = [(is_right(one), is_right(other)) for one, other in pairs(ours, base)]
    judged = [pair for pair in rights if None not in pair]
    if not judged:
        return None
    from scipy.stats import binomtest

    only_this, only_first = judged.count((True, False)), judged.count((False, True))
    differing = only_this + only_first
    p = float(binomtest(only_this, differing, 0.5).pvalue) if differing else 1.0
    return {"questions": len(judged), "only_this": only_this, "only_first": only_first, "p": p}


def by_category(benchmark: Benchmark, records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Category -> method -> how many questions were answered, and their metrics; of items whose `meta` tells a
    "category" or, else, the "object" asked about.
    """
    items = [benchmark.item(index) for index in range(len(benchmark))]
    names = {item.id: str(item.meta.get("category") or item.meta.get("object") or "") for item in items}
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.benchmark == benchmark.name and record.status == "done" and names.get(record.id):
            groups.setdefault(names[record.id], {}).setdefault(record.method, []).append(record)
    return {
        name: {
            label: {
                "questions": len(part),
                **stats.values(stats.Counts.of(further.join(benchmark, part)), benchmark.metrics),
            }
            for label, part in groups[name].items()
        }
        for name in sorted(groups)
    }
