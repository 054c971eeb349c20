"""`--sweep`: a run on tuning pictures before the one that is reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mmattn.decoding.method import Method
    from mmattn.eval.sweep import Plan

TUNE, RECORD, CURVE = "tune", "sweep.json", "sweep.png"


def tune(plan: Plan, by: str, out: Path, evaluate: Callable[[list[Method], Path], dict[str, Any]]) -> list[Method]:
    """Run every variant, in a run folder inside `out`, and keep what came of it there.

    Returns:
        The methods of the run that is reported: those that are only compared, then the best variant of each other.
    """
    from mmattn.eval.parts import team
    from mmattn.eval.plot import tradeoff
    from mmattn.eval.report import failures
    from mmattn.eval.store import write_atomic
    from mmattn.eval.sweep import best

    results = evaluate(plan.tuning, out / TUNE)
    chosen, table = best(results, plan.variants, by)
    if not team().rank:
        curves = [[one.label for one in several] for several in plan.variants.values()]
        picture = tradeoff(results["metrics"], curves)
        if picture:
            (out / CURVE).write_bytes(picture)
        kept = {
            "by": by,
            "tuning": results["benchmarks"],
            "mean": table,
            "chosen": {label: one.settings() for label, one in zip(plan.variants, chosen, strict=True)},
        }
        write_atomic(out / RECORD, json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        _tell(by, table, chosen)
        if failures(results):
            typer.echo(f"While tuning: {failures(results)}", err=True)
    return [*plan.others, *chosen]


def _tell(by: str, table: Mapping[str, Mapping[str, float | None]], chosen: list[Method]) -> None:
    """On stderr: the standard output is the report's."""
    taken = {one.label for one in chosen}
    for variants in table.values():
        for label, value in variants.items():
            shown = "undefined" if value is None else f"{value:.4f}"
            typer.echo(f"{'*' if label in taken else ' '} {label}: {by} {shown} on the tuning pictures", err=True)
