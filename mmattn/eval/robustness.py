"""How much grounding loses when pictures get worse: a run per kind and grade of damage, against that of clean ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmattn.eval import pointing, stats
from mmattn.eval.grounding import CHANCE, WORDS, evaluate_grounding
from mmattn.eval.referring import Targets
from mmattn.eval.store import read_records, write_atomic
from mmattn.eval.variants import Variant
from mmattn.grounding.locator import Locator

if TYPE_CHECKING:
    from mmattn.vlm import VLM


def evaluate_robustness(
    model: VLM,
    targets: Targets,
    images: Path,
    methods: Mapping[str, Locator],
    out: Path,
    variants: Sequence[Variant],
    **settings: Any,
) -> dict[str, Any]:
    """`evaluate_grounding` on clean pictures (in out/clean) and on each variant (in out/NAME); all of them resume.

    Returns:
        What out/robustness.json holds: by variant ("clean" among them) and method, click accuracy and, for variants,
        the difference to that of clean pictures, both with intervals over pictures.
    """
    found: dict[str, dict[str, Any]] = {}
    clean: dict[str, stats.Counts] = {}
    for variant in (None, *variants):
        name = variant.name if variant else "clean"
        evaluate_grounding(model, targets, images, methods, out / name, variant=variant, **settings)
        records = read_records(out / name / "samples.jsonl")[0]
        found[name] = {}
        for label in (*methods, WORDS, CHANCE):
            counts = stats.Counts.of(one for one in records if one.method == label)
            told = {"click": stats.estimates(counts, pointing.metrics)["click"].to_json()}
            if variant:
                told["drop"] = stats.differences(counts, clean[label], pointing.metrics)["click"].to_json()
            else:
                clean[label] = counts
            found[name][label] = told
    results = {"targets": targets.name, "queries": len(targets.targets), "variants": found}
    write_atomic(out / "robustness.json", json.dumps(results, indent=1) + "\n")
    write_atomic(out / "robustness.md", markdown(results))
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """A row for each variant: click accuracy, and in brackets the difference to clean pictures, in percent."""
    variants = results["variants"]
    labels = list(variants["clean"])
    lines = ["| | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    for name, by_method in variants.items():
        lines.append(f"| {name} | " + " | ".join(_cell(by_method[label]) for label in labels) + " |")
    return "\n".join(lines) + "\n"


def _cell(told: Mapping[str, Any]) -> str:
    value, drop = told["click"]["value"], told.get("drop", {}).get("value")
    text = "-" if value is None else f"{100 * value:.1f}"
    return text if drop is None else f"{text} ({100 * drop:+.1f})"
