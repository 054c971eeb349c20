"""Every method on the scenes: POPE and CHAIR on val, against greedy, with its price; constants from the tune split.

    python -m benchmarks.methods_table --tune --out runs/methods --device cuda --batch-size 256
    python -m benchmarks.methods_table --out runs/methods --device cuda --batch-size 256 [--limit 100] [--seconds 300]

The first command tries the settings of `benchmarks._methods_grids` on pictures of `tune` and writes `settings.json`;
the second asks val under every method at its defaults, and under the settings found, and writes `methods.json` and
`methods.md` after each. Both may be stopped at any time: the same command goes on. Nothing is tuned on val.

Intervals are bootstraps over pictures. The paired test swaps the answers of a method and of greedy decoding picture by
picture at random; p is the share of swaps in which the difference is at least as large as it was.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import mmattn
from benchmarks._methods_grids import GRIDS
from benchmarks._methods_report import SWAPS, markdown, swapped
from mmattn import scenes
from mmattn.decoding import resolve
from mmattn.errors import MmattnError, first_line
from mmattn.eval import STRATEGIES, Chair, Item, Pope, build, evaluate, load_captions, load_instances, provenance, stats
from mmattn.eval.store import read_records, write_atomic
from mmattn.images import open_image

TIMED_TOKENS = 33
POPE = "pope-adversarial"


class Shown:
    """A benchmark whose pictures are opened once for all methods."""

    def __init__(self, benchmark: Any, opened: dict[Path, Any]) -> None:
        self._benchmark, self._opened = benchmark, opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._benchmark, name)

    def __len__(self) -> int:
        return len(self._benchmark)

    def item(self, index: int) -> Item:
        item = self._benchmark.item(index)
        if item.path not in self._opened:
            self._opened[item.path] = open_image(item.path)
        return replace(item, path=self._opened[item.path])


class Remembering:
    """A model that preprocesses each picture once for all methods, and may decode by plain steps."""

    def __init__(self, vlm: mmattn.VLM, fast: bool) -> None:
        self.name, self.describe, self._vlm, self._fast = vlm.name, vlm.describe, vlm, fast
        known: dict[str, Any] = {}
        original = vlm.adapter.preprocess

        def preprocess(pictures: Mapping[str, Any]) -> list[Any]:
            missing = {key: one for key, one in pictures.items() if key not in known}
            if missing:
                known.update(zip(missing, original(missing), strict=True))
            return [known[key] for key in pictures]

        vlm.adapter.preprocess = preprocess  # type: ignore[method-assign]

    def generate(self, *given: Any, **named: Any) -> Any:
        return self._vlm.generate(*given, **named, fast=self._fast)


def benchmarks_of(split: str, limit: int | None, strategies: Iterable[str] = STRATEGIES) -> list[Any]:
    """POPE and CHAIR on the first `limit` pictures of a split of the scenes."""
    world = scenes.dataset(split)
    instances, opened = load_instances(world.instances), {}
    asked = [Pope(one, build(instances, one, 0), world.images, instances=instances, limit=limit) for one in strategies]
    chair = Chair(instances, load_captions(world.captions), world.images, limit=limit)
    return [Shown(one, opened) for one in (*asked, chair)]


@dataclass
class Budget:
    """Seconds that may be spent; nothing begins that is likely to overrun them."""

    seconds: float
    begun: float
    longest: float = 0.0

    def allows(self) -> bool:
        return time.monotonic() - self.begun + self.longest < self.seconds

    def spend(self, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        done = work()
        self.longest = max(self.longest, time.monotonic() - start)
        return done


def asked(model: Any, benchmarks: Sequence[Any], label: str, folder: Path, batch: int, seed: int) -> dict[str, Any]:
    """Evaluate one method in a run folder of its own; finished answers are kept."""
    return evaluate(model, benchmarks, [label], folder / slug(label), batch_size=batch, seed=seed, progress=False)


def slug(label: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", label).strip("_")


# One row of the table.


def judged(results: Mapping[str, Any], label: str, benchmarks: Sequence[Any], runs: Path, base: str) -> dict[str, Any]:
    """A method's metrics, and how they differ from those of `base`."""
    records = {one: read_records(runs / slug(one) / "samples.jsonl")[0] for one in (label, base)}
    row: dict[str, Any] = {"metrics": {}, "differences": {}, "p": {}}
    for benchmark in benchmarks:
        row["metrics"][benchmark.name] = results["metrics"][benchmark.name][label]
        ours, theirs = (
            stats.Counts.of(r for r in records[one] if r.benchmark == benchmark.name) for one in (label, base)
        )
        if label != base:
            gaps = stats.differences(ours, theirs, benchmark.metrics)
            row["differences"][benchmark.name] = {name: one.to_json() for name, one in gaps.items()}
            row["p"][benchmark.name] = swapped(ours, theirs, benchmark.metrics)
    row["answers"], row["seconds"] = len(records[label]), results["timing"]["total"]
    return row


def described(label: str, kind: str) -> dict[str, Any]:
    """What a method is and costs."""
    method = resolve(label)
    return {
        "kind": kind,
        "settings": method.settings(),
        "rows_decoded": 1 + sum(one.decoded for one in method.branches()),
        "extra_passes": method.card.extra_passes,
        "exact": method.card.exact,
    }


def timed(vlm: mmattn.VLM, label: str, batch: int, pictures: Sequence[Any]) -> dict[str, float]:
    """Milliseconds to the first token of a batch, extra passes included, and for each token after it."""

    def once(tokens: int) -> float:
        if vlm.adapter.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        vlm.generate(
            [pictures[index % len(pictures)] for index in range(batch)], ["Please describe the image."] * batch,
            method=label, max_new_tokens=tokens, batch_size=batch, stop_token_ids=[], share=False,
        )  # fmt: skip
        return 1000 * (time.perf_counter() - start)

    once(TIMED_TOKENS)  # compiles what is compiled
    first = statistics.median(once(1) for _ in range(3))
    whole = statistics.median(once(TIMED_TOKENS) for _ in range(3))
    return {"batch": batch, "first_ms": round(first, 2), "token_ms": round((whole - first) / (TIMED_TOKENS - 1), 3)}


# Tuning.


def score(results: Mapping[str, Any], label: str) -> float:
    """What settings are chosen by: accuracy on adversarial questions and F1 of captions, half each."""
    metrics = results["metrics"]
    return (metrics[POPE][label]["accuracy"]["value"] + metrics["chair"][label]["f1"]["value"]) / 2


def tune(model: Any, args: argparse.Namespace, budget: Budget) -> None:
    """Try every grid on the tune split."""
    benchmarks = benchmarks_of("tune", args.limit, ["adversarial"])
    path = args.out / "settings.json"
    found: dict[str, Any] = {"split": "tune", "model": model.describe(), "images": args.limit, "methods": {}}
    for name in chosen(args.methods):
        tried: dict[str, float] = {}
        for text in GRIDS.get(name, ()):
            label = resolve(text).label
            if not budget.allows():
                print(f"Out of time before {label}; the same command goes on.", file=sys.stderr)
                return
            try:
                results = budget.spend(
                    lambda label=label: asked(model, benchmarks, label, args.out / "tune", args.batch_size, args.seed)
                )
            except (MmattnError, RuntimeError) as error:
                print(f"{label} left out: {first_line(error)}", flush=True)
                continue
            tried[label] = round(score(results, label), 5)
            print(label, tried[label], flush=True)
        if tried:
            best = max(tried, key=lambda label: tried[label])  # of equals the first: the defaults stand in front
            found["methods"][name] = {"label": best, "tried": tried}
            write_atomic(path, json.dumps(found, indent=1) + "\n")


def chosen(names: str | None) -> list[str]:
    """Methods by name, greedy first."""
    every = [one.name for one in mmattn.methods()]
    wanted = every if names is None else [resolve(name).name for name in names.split(",")]
    return ["greedy", *(name for name in wanted if name != "greedy")]


def rows_of(args: argparse.Namespace) -> dict[str, str]:
    """Labels to ask, and whether each is a method's defaults or tuned."""
    rows = {resolve(name).label: "default" for name in chosen(args.methods)}
    path = args.settings or args.out / "settings.json"
    if path.exists():
        for name, one in json.loads(path.read_text(encoding="utf-8"))["methods"].items():
            if name in rows:
                rows.setdefault(resolve(one["label"]).label, "tuned")
    elif args.settings:
        raise MmattnError(f"{path} does not exist", "Make it with --tune.")
    return rows


def compare(model: Any, vlm: mmattn.VLM, args: argparse.Namespace, budget: Budget) -> None:
    """Ask val under every method; then take the time of each."""
    benchmarks, runs = benchmarks_of("val", args.limit), args.out / "val"
    before = _rows_before(args.out / "methods.json")
    report: dict[str, Any] = {
        "split": "val", "images": args.limit or 400, "seed": args.seed, "model": vlm.describe(),
        "device": torch.cuda.get_device_name() if vlm.adapter.device.type == "cuda" else "cpu",
        "versions": provenance.versions(), "commit": provenance.commit(), "swaps": SWAPS, "rows": {},
    }  # fmt: skip
    rows, base = rows_of(args), resolve("greedy").label
    report["rows"] |= {label: before[label] for label in rows if label in before}  # should time run out
    for label, kind in rows.items():
        if not budget.allows():
            break
        row = described(label, kind)
        try:
            results = budget.spend(
                lambda label=label: asked(model, benchmarks, label, runs, args.batch_size, args.seed)
            )
            row |= judged(results, label, benchmarks, runs, base)
        except (MmattnError, RuntimeError) as error:  # one method's failure must not take the others along
            if label == base:
                raise
            row["failed"] = first_line(error)
        if "time" in before.get(label, {}):
            row["time"] = before[label]["time"]
        report["rows"][label] = row
        _write(args.out, report)
        print(label, row.get("failed", f"{row.get('seconds')} s"), flush=True)
    if args.time_batch:
        _time_all(vlm, report, args, budget, [benchmarks[-1].item(index).path for index in range(len(benchmarks[-1]))])
    if len(report["rows"]) < len(rows):
        print("Out of time; the same command goes on.", file=sys.stderr)


def _time_all(
    vlm: mmattn.VLM, report: dict[str, Any], args: argparse.Namespace, budget: Budget, pictures: Sequence[Any]
) -> None:
    budget.longest = 0.0
    for label, row in report["rows"].items():
        if "failed" not in row and "time" not in row and budget.allows():
            row["time"] = budget.spend(lambda label=label: timed(vlm, label, args.time_batch, pictures))
            _write(args.out, report)
            print(label, row["time"], flush=True)


def _rows_before(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    return found


def _write(out: Path, report: Mapping[str, Any]) -> None:
    write_atomic(out / "methods.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_atomic(out / "methods.md", markdown(report))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="scenes-llava")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=int, default=None, help="pictures of the split; all 400 by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing that would overrun this")
    parser.add_argument("--methods", default=None, help="comma-separated names; all by default")
    parser.add_argument("--tune", action="store_true", help="choose settings on the tune split")
    parser.add_argument("--settings", type=Path, default=None, help="file of --tune; OUT/settings.json by default")
    parser.add_argument("--fast", action="store_true", help="ask by captured steps, which compile for each method")
    parser.add_argument("--time-batch", type=int, default=16, help="samples of the timed batch; 0: no times")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Run the program."""
    args = arguments(given)
    budget = Budget(args.seconds, time.monotonic())
    vlm = mmattn.load(args.model, device=args.device, dtype=args.dtype)
    model = Remembering(vlm, args.fast)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.tune:
        tune(model, args, budget)
    else:
        compare(model, vlm, args, budget)


if __name__ == "__main__":
    main()
