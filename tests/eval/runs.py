"""Runs of the fake model over the small world, and how to compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmattn.eval import Benchmark, Chair, Pope, build, evaluate, load_captions, load_instances
from tests.eval.fakes import FakeModel, World

METHODS = ("greedy", "vcd")


def benchmarks(world: World, limit: int | None = 3) -> list[Benchmark]:
    data = load_instances(world.instances)
    pope = [
        Pope(split, build(data, split), world.images, instances=data, limit=limit) for split in ("random", "popular")
    ]
    return [*pope, Chair(data, load_captions(world.captions), world.images, limit=limit)]


def run(world: World, out: Path, model: FakeModel | None = None, **options: Any) -> dict[str, Any]:
    asked = options.pop("asked", None) or benchmarks(world)
    options = {"batch_size": 4, "progress": False, **options}
    return evaluate(model or FakeModel(), asked, METHODS, out, **options)


def answers(out: Path) -> list[dict[str, Any]]:
    """The samples without what may differ between runs."""
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "timing"}
