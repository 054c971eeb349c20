"""Results as a table: metrics down, methods across, with intervals and differences from the first method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

TITLES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "yes ratio",
    "false_yes_rate": "false-yes rate",
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "length": "length in words",
}
_ABSOLUTE = {"length"}  # so are a benchmark's own scores; everything else is a rate, shown in percent


@dataclass(frozen=True)
class Section:
    """One benchmark: a title, and rows of a metric name, a cell per method and a cell per difference."""

    title: str
    rows: tuple[tuple[str, ...], ...]


def header(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Column titles of every section."""
    methods = list(results["methods"])
    return ("metric", *methods, *(f"{method} - {methods[0]}" for method in methods[1:]))


def sections(results: Mapping[str, Any]) -> list[Section]:
    """The numbers of `results.json` as texts."""
    methods = list(results["methods"])
    found = []
    for name, by_method in results["metrics"].items():
        gaps = results["differences"]["metrics"][name]
        metrics = list(next((values for values in by_method.values() if values), {}))
        rows = tuple(
            (
                TITLES.get(metric, metric),
                *(cell(metric, by_method[method].get(metric)) for method in methods),
                *(cell(metric, gaps[method].get(metric), sign=True) for method in methods[1:]),
            )
            for metric in metrics
        )
        found.append(Section(_title(name, results), rows))
    return found


def table(results: Mapping[str, Any]) -> Table:
    """A rich table."""
    grid = Table(box=box.SIMPLE_HEAD, caption=caption(results), caption_justify="left")
    for index, title in enumerate(header(results)):
        grid.add_column(title, justify="left" if index == 0 else "right")
    for section in sections(results):
        grid.add_row(Text(section.title, style="bold"))
        for row in section.rows:
            grid.add_row("  " + row[0], *row[1:])
        grid.add_section()
    return grid


def markdown(results: Mapping[str, Any]) -> str:
    """The same table for a document."""
    titles = header(results)
    lines = [_row(titles), _row(["---", *["---:"] * (len(titles) - 1)])]
    for section in sections(results):
        lines.append(_row([f"**{section.title}**", *[""] * (len(titles) - 1)]))
        lines.extend(map(_row, section.rows))
    return "\n".join(lines) + f"\n\n{caption(results)}\n"


def caption(results: Mapping[str, Any]) -> str:
    """How to read the numbers."""
    level = round(100 * results["bootstrap"]["level"])
    return (
        f"Rates in percent, differences in points; in brackets the {level} % bootstrap interval over images. "
        "Lower is better for CHAIR_i, CHAIR_s and the false-yes rate."
    )


def failures(results: Mapping[str, Any]) -> str:
    """One line on questions that could not be asked; empty when there are none."""
    reasons = [
        reason
        for by_method in results["samples"].values()
        for status in by_method.values()
        for reason in status["reasons"].values()
    ]
    if not reasons:
        return ""
    asked = _count(len(reasons), "question")
    return f"{asked} could not be asked, left out of the metrics; the first: {reasons[0]}"


def _title(name: str, results: Mapping[str, Any]) -> str:
    values = results["benchmarks"][name]
    sizes = [_count(values[what], what.removesuffix("s")) for what in ("images", "questions") if what in values]
    return f"{name} ({', '.join(sizes)})" if sizes else name


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def cell(metric: str, estimate: Mapping[str, float | None] | None, sign: bool = False) -> str:
    """One number, with its interval if there is one."""
    if estimate is None or estimate["value"] is None:
        return "-"
    scale = 1 if metric in _ABSOLUTE or metric.endswith(" score") else 100
    form = "{:+.1f}" if sign else "{:.1f}"
    text = form.format(scale * estimate["value"])
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return text
    return f"{text} ({form.format(scale * low)}..{form.format(scale * high)})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
