"""What a benchmark may add to its metrics: counts of several answers together, tables, and files for other scorers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.eval.store import write_atomic
from mmattn.eval.types import Benchmark, Record


class Further:
    """A benchmark that adds to its metrics extends this; by default it adds nothing."""

    def join(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records for the metrics, with counts that several answers make together.

        A record's `image` is the unit that the bootstrap draws.
        """
        return records

    def extras(self, records: Sequence[Record]) -> dict[str, Any]:  # noqa: ARG002
        """JSON for the results file beside the metrics; lines under "notes" are shown to the user."""
        return {}

    def answers(self, records: Sequence[Record]) -> Mapping[str, str]:  # noqa: ARG002
        """File names and texts, as the benchmark's own scorer reads them."""
        return {}


def join(benchmark: Benchmark, records: Sequence[Record]) -> Sequence[Record]:
    """The records that the metrics are computed from."""
    done = [record for record in records if record.status == "done"]
    return benchmark.join(done) if isinstance(benchmark, Further) else done


def extras(benchmarks: Sequence[Benchmark], records: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
    """By benchmark and method, what is to be said beside the metrics."""
    found: dict[str, Any] = {}
    for benchmark in benchmarks:
        if isinstance(benchmark, Further):
            said = {label: benchmark.extras(_of(benchmark, records, label)) for label in labels}
            found |= {benchmark.name: said} if any(said.values()) else {}
    return found


def write_answers(benchmarks: Sequence[Benchmark], records: Sequence[Record], labels: Sequence[str], out: Path) -> None:
    """Each benchmark's answers in its own format, a folder per benchmark and method; those of an earlier run go."""
    shutil.rmtree(out / "answers", ignore_errors=True)
    for benchmark in benchmarks:
        for label in labels if isinstance(benchmark, Further) else ():
            assert isinstance(benchmark, Further)
            folder = out / "answers" / safe(f"{benchmark.name}-{label}")
            for name, text in benchmark.answers(_of(benchmark, records, label)).items():
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / name, text)


def notes(results: Mapping[str, Any]) -> list[str]:
    """The lines for the user, each with its benchmark, and its method where it is not of all methods."""
    found: list[str] = []
    for name, by_method in results.get("extras", {}).items():
        said = {label: values.get("notes", []) for label, values in by_method.items()}
        common = [line for line in next(iter(said.values()), []) if all(line in lines for lines in said.values())]
        found += [f"{name}: {line}" for line in common]
        found += [f"{name}, {label}: {line}" for label, lines in said.items() for line in lines if line not in common]
    return found


def rejects(results: Mapping[str, Any]) -> list[str]:
    """One line for each file with entries that could not be used."""
    files = {one["file"]: one for values in results["benchmarks"].values() if (one := values.get("rejected"))}
    return [
        f"{name}: {one['count']} unusable, not asked: {'; '.join(one['entries'][:3])}"
        + ("; ..." if one["count"] > 3 else "")
        for name, one in files.items()
        if one["count"]
    ]


def safe(name: str) -> str:
    """A file name."""
    return re.sub(r"[^\w.=,()+-]", "_", name)


def _of(benchmark: Benchmark, records: Sequence[Record], label: str) -> list[Record]:
    """What was answered, in the order of the questions; a continued run may have written it in another."""
    place = {benchmark.item(index).id: index for index in range(len(benchmark))}
    mine = [one for one in records if (one.benchmark, one.method, one.status) == (benchmark.name, label, "done")]
    return sorted(mine, key=lambda one: place.get(one.id, len(place)))
