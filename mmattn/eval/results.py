"""What `results.json` holds: metrics with intervals, differences between methods, failures, and, apart, the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmattn.eval import compare, cost, further, stats
from mmattn.eval.types import Benchmark, Record


def summarise(
    settings: Mapping[str, Any],
    commits: Sequence[str],
    records: Sequence[Record],
    benchmarks: Sequence[Benchmark],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Everything but "timing" is the same on every run with the same settings and code.

    Differences are from the first of `labels`.
    """
    metrics: dict[str, Any] = {}
    gaps: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for benchmark in benchmarks:
        groups = {label: [r for r in records if (r.benchmark, r.method) == (benchmark.name, label)] for label in labels}
        counts = {label: stats.Counts.of(further.join(benchmark, records)) for label, records in groups.items()}
        metrics[benchmark.name] = {
            label: _plain(stats.estimates(one, benchmark.metrics)) for label, one in counts.items()
        }
        gaps[benchmark.name] = {
            label: _plain(stats.differences(counts[label], counts[labels[0]], benchmark.metrics))
            for label in labels[1:]
        }
        tests[benchmark.name] = {label: compare.mcnemar(groups[label], groups[labels[0]]) for label in labels[1:]}
        samples[benchmark.name] = {label: _statuses(records) for label, records in groups.items()}
    return {
        **settings,
        "commit": commits[-1] if commits else None,
        "commits": list(commits),
        "metrics": metrics,
        "differences": {"from": labels[0], "metrics": gaps, "mcnemar": tests},
        "samples": samples,
        "extras": further.extras(benchmarks, records, labels),
        "timing": {**_timing(records), "methods": cost.spent(records)},
    }


def _plain(values: Mapping[str, stats.Estimate]) -> dict[str, Any]:
    return {name: value.to_json() for name, value in values.items()}


def _statuses(records: Sequence[Record]) -> dict[str, Any]:
    failed = {record.id: record.reason for record in records if record.status == "failed"}
    return {"done": len(records) - len(failed), "failed": len(failed), "reasons": failed}


def _timing(records: Sequence[Record]) -> dict[str, Any]:
    seconds: dict[str, dict[str, float]] = {}
    for record in records:
        by_method = seconds.setdefault(record.benchmark, {})
        by_method[record.method] = by_method.get(record.method, 0.0) + record.seconds
    rounded = {name: {m: round(s, 3) for m, s in by_method.items()} for name, by_method in seconds.items()}
    return {"seconds": rounded, "total": round(sum(sum(by.values()) for by in rounded.values()), 3)}
