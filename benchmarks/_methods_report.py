"""What `benchmarks.methods_table` writes: differences with a paired test, and two tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmattn.eval import stats

SWAPS = 2000
COLUMNS = [
    ("POPE random", "pope-random", "accuracy"),
    ("popular", "pope-popular", "accuracy"),
    ("adversarial", "pope-adversarial", "accuracy"),
    ("false yes", "pope-adversarial", "false_yes_rate"),
    ("CHAIR_i", "chair", "chair_i"),
    ("CHAIR_s", "chair", "chair_s"),
    ("recall", "chair", "recall"),
    ("F1", "chair", "f1"),
    ("words", "chair", "length"),
]


def swapped(ours: stats.Counts, base: stats.Counts, metrics: stats.Metrics) -> dict[str, float]:
    """Two-sided p of each metric's difference, by random swaps of whole pictures."""
    both = sorted(set(ours.images) & set(base.images))
    fields = sorted(set(ours.fields) | set(base.fields))
    first, second = (_table(one, both, fields) for one in (ours, base))
    take = np.random.default_rng(0).integers(0, 2, (SWAPS + 1, len(both))).astype(float)
    take[0] = 1  # as it was
    mixed = [take @ one + (1 - take) @ other for one, other in ((first, second), (second, first))]
    a, b = (metrics({name: table[:, column] for column, name in enumerate(fields)}) for table in mixed)
    found = {}
    for name in a:
        gap = np.abs(a[name] - b[name])
        if np.isfinite(gap[0]):
            found[name] = float((1 + (gap[1:] >= gap[0] - 1e-12).sum()) / (1 + SWAPS))
    return found


def _table(counts: stats.Counts, images: Sequence[str], fields: Sequence[str]) -> np.ndarray[Any, Any]:
    row = {image: number for number, image in enumerate(counts.images)}
    column = {name: number for number, name in enumerate(counts.fields)}
    table = np.zeros((len(images), len(fields)))
    for index, name in enumerate(fields):
        if name in column:
            table[:, index] = counts.table[[row[image] for image in images], column[name]]
    return table


def markdown(report: Mapping[str, Any]) -> str:
    """Figures with intervals, then differences from greedy with p where that is below 1; "=" is none at all."""
    titles = [title for title, *_ in COLUMNS]
    lines = [_line(["method", *titles, "first token ms", "ms per token", "rows, extra passes"]), _rule(len(titles) + 3)]
    gaps = [_line(["method - greedy", *titles]), _rule(len(titles))]
    for label, row in report["rows"].items():
        name = f"`{label}`" + (" (tuned)" if row["kind"] == "tuned" else "")
        if "failed" in row:
            lines.append(_line([name, row["failed"], *[""] * (len(titles) + 2)]))
            continue
        cost = row.get("time", {})
        cells = [_interval(row["metrics"][bench].get(metric), metric) for _, bench, metric in COLUMNS]
        passes = f"{row['rows_decoded']}, {row['extra_passes']}"
        lines.append(_line([name, *cells, _number(cost, "first_ms"), _number(cost, "token_ms"), passes]))
        if row["differences"]:
            cells = [
                _interval(row["differences"][bench].get(metric), metric, "+") + _p(row["p"][bench].get(metric))
                for _, bench, metric in COLUMNS
            ]
            gaps.append(_line([name, *cells]))
    return "\n".join([*lines, "", *gaps]) + "\n"


def _interval(estimate: Mapping[str, Any] | None, metric: str, sign: str = "") -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    if sign and not any(estimate.values()):
        return "="
    scale = 1 if metric == "length" else 100
    value, low, high = (None if one is None else f"{scale * one:{sign}.1f}" for one in estimate.values())
    return f"{value}" if low is None else f"{value} ({low}..{high})"


def _p(value: float | None) -> str:
    return "" if value is None or value == 1 else f", p {value:.3f}"


def _number(values: Mapping[str, Any], name: str) -> str:
    return f"{values[name]:.1f}" if name in values else "-"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return _line(["---", *["---:"] * columns])
