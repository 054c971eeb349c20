"""Recall against hallucination: a method that says less invents less, so that neither number says much alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

INVENTED = {"chair_i": "CHAIR_i", "false_yes_rate": "false-yes rate"}


def axis(metrics: Mapping[str, Any]) -> str | None:
    """Which of the metrics counts what is invented; None where there is none, or no recall."""
    return next((name for name in INVENTED if name in metrics), None) if "recall" in metrics else None


def tradeoff(metrics: Mapping[str, Mapping[str, Any]], curves: Sequence[Sequence[str]] = ()) -> bytes:
    """A PNG with one panel per benchmark that knows both; empty if none does. Bars are the intervals.

    Args:
        metrics: as in `results.json`: benchmark -> method -> metric -> value, low, high.
        curves: methods to be joined by a line, in this order.
    """
    panels = {}
    for benchmark, methods in metrics.items():
        name = axis(next(iter(methods.values()), {}))
        if name is not None:
            panels[benchmark] = (name, {label: one for label, one in methods.items() if _known(one, name)})
    panels = {benchmark: panel for benchmark, panel in panels.items() if panel[1]}
    if not panels:
        return b""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, columns, squeeze=False).flat
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, (benchmark, (name, methods)) in zip(every, panels.items(), strict=False):
        for label, one in methods.items():
            x, y = one[name], one["recall"]
            bars = {"xerr": _bars(x), "yerr": _bars(y)}
            axes.errorbar(100 * x["value"], 100 * y["value"], **bars, fmt="o", label=label, capsize=2, lw=1)
        for curve in curves:
            points = [methods[label] for label in curve if label in methods]
            axes.plot(*([100 * one[key]["value"] for one in points] for key in (name, "recall")), color="0.6", zorder=0)
        axes.set(title=benchmark, xlabel=f"{INVENTED[name]} (%), less is better", ylabel="recall (%)")
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _known(metrics: Mapping[str, Any], name: str) -> bool:
    return all(metrics.get(key, {}).get("value") is not None for key in (name, "recall"))


def _bars(estimate: Mapping[str, float | None]) -> list[list[float]] | None:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return None
    # a percentile interval need not hold the value itself
    return [[100 * max(value - low, 0)], [100 * max(high - value, 0)]]
