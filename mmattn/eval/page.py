"""`report.html`: a run on one page that needs nothing else, no network and no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.errors import MmattnError
from mmattn.eval import further, report
from mmattn.eval.cases import Case

TEMPLATE = Path(__file__).parent / "data" / "report.html"
SHOWN = ("commit", "commits", "model", "seed", "methods", "benchmarks", "versions", "bootstrap")


def page(
    results: Mapping[str, Any], plot: bytes, cases: Sequence[tuple[Case, Mapping[str, str]]], sweep: bytes = b""
) -> str:
    """The page, from `results.json`, the plot of recall against hallucination, and drawn cases.

    `sweep` is the plot of the run on tuning pictures that chose the hyper-parameters, if there was one.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MmattnError("The report needs jinja2", 'Install it with: pip install "mmattn[eval]"') from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    settings = {name: results[name] for name in SHOWN if name in results}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        methods=list(results["methods"]),
        header=report.header(results),
        sections=report.sections(results),
        caption=report.caption(results),
        failures=report.failures(results),
        rejects=further.rejects(results),
        notes=further.notes(results),
        tests=_tests(results),
        costs=_costs(results),
        categories=_categories(results),
        plot=base64.b64encode(plot).decode(),
        sweep=base64.b64encode(sweep).decode(),
        wins=[one for one in cases if one[0].gain > 0],
        losses=[one for one in cases if one[0].gain < 0],
        settings=json.dumps(settings, indent=1, ensure_ascii=False),
    )


def _tests(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (benchmark, label, str(one["only_this"]), str(one["only_first"]), f"{one['p']:.3g}")
        for benchmark, by_method in results["differences"].get("mcnemar", {}).items()
        for label, one in by_method.items()
        if one
    ]


def _costs(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for label, passes in results.get("passes", {}).items():
        spent = results["timing"]["methods"].get(label, {})
        time, peak = spent.get("ms_per_token"), spent.get("peak_mib")
        memory = f"{peak:.0f} MiB" if peak else "not measured (no GPU)"
        rows.append((label, str(passes["rows"]), passes["extra_passes"], f"{time:.2f}" if time else "-", memory))
    return rows


def _categories(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By benchmark: the metrics that stand in the columns, and the rows."""
    found = {}
    for benchmark, categories in results.get("categories", {}).items():
        if not categories:
            continue
        first = next(iter(next(iter(categories.values())).values()))
        names = [name for name in ("accuracy", "recall", "false_yes_rate", *first) if name in first]
        names = list(dict.fromkeys(name for name in names if name != "questions"))[:3]
        rows = [
            (category, label, str(one["questions"]), *(report.cell(name, {"value": one.get(name)}) for name in names))
            for category, by_method in categories.items()
            for label, one in by_method.items()
        ]
        found[benchmark] = {"columns": [report.TITLES.get(name, name) for name in names], "rows": rows}
    return found
