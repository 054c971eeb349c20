"""Asks every question of every benchmark under every method, and resumes. Knows no benchmark and no method."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mmattn.errors import MmattnError
from mmattn.eval import further, provenance, stats
from mmattn.eval.results import summarise
from mmattn.eval.store import RunFolder
from mmattn.eval.types import Benchmark, Item, Model, Record
from mmattn.images import open_image

FORMAT = "mmattn-eval/1"

Asked = tuple[str, str, str, int]
"""Method, image, prompt, longest answer: the same four give the same answer, in whatever batch."""


def evaluate(
    model: Model,
    benchmarks: Sequence[Benchmark],
    methods: Sequence[Any],
    out: Path,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    fresh: bool = False,
) -> dict[str, Any]:
    """Ask every question under every method, score, and write the run folder.

    Args:
        model: from `mmattn.load` or `mmattn.wrap`.
        benchmarks: asked in this order.
        methods: names or method instances; the first one is what the others are compared with.
        out: the run folder. Answers that it holds already are kept, if the settings are the same.
        batch_size: questions at once; changes no number.
        seed: of the methods' random draws.
        progress: show a bar on stderr.
        fresh: forget earlier answers instead of keeping them.

    Returns:
        What `results.json` holds.

    Raises:
        MmattnError: other settings in the folder, or no question could be asked at all.
    """
    if batch_size < 1:
        raise MmattnError(f"Batch size {batch_size} is too small", "It must be at least 1.")
    named = label_methods(methods)
    settings = _settings(model, benchmarks, named, seed)
    with RunFolder(out, settings, provenance.commit(), fresh=fresh) as folder:
        for benchmark in benchmarks:
            for name, text in benchmark.files().items():
                folder.write(name, text)
        total = sum(map(len, benchmarks)) * len(named)
        with _bar(total, len(folder.records), progress) as tick:
            run = _Run(model, folder, batch_size, seed, tick, _known(folder.records, benchmarks))
            for benchmark in benchmarks:
                for label, method in named.items():
                    run.ask_all(benchmark, label, method)
        results = summarise(settings, folder.commits, folder.records, benchmarks, list(named))
        further.write_answers(benchmarks, folder.records, list(named), out)
        folder.write("results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    failed = [record for record in folder.records if record.status == "failed"]
    if failed and len(failed) == len(folder.records):
        raise MmattnError("No question could be asked; the first failed because: " + failed[0].reason)
    return results


def label_methods(methods: Sequence[Any]) -> dict[str, Any]:
    """Method instances by label: the name, with the hyper-parameters that are not at their default."""
    from mmattn.decoding import resolve  # here, so that scoring alone needs no torch

    named: dict[str, Any] = {}
    for given in methods:
        method = resolve(given)
        label = method.label
        if label in named:
            raise MmattnError(f"Method {label} is given twice", "Name each method once.")
        named[label] = method
    if not named:
        raise MmattnError("No method is given", "Name at least one, such as greedy.")
    return named


def _settings(model: Model, benchmarks: Sequence[Benchmark], methods: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything that decides an answer or a verdict. Batch size is not in it: it changes nothing."""
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise MmattnError(f"A benchmark is given twice: {', '.join(names)}", "Name each once.")
    return {
        "format": FORMAT,
        "model": model.describe(),
        "seed": seed,
        "methods": {label: method.settings() for label, method in methods.items()},
        "benchmarks": {benchmark.name: benchmark.describe() for benchmark in benchmarks},
        "versions": provenance.versions(),
        "bootstrap": {"unit": "image", "resamples": stats.RESAMPLES, "level": stats.LEVEL, "seed": stats.SEED},
    }


@dataclass(frozen=True)
class _Said:
    """An answer, and what it cost."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    seconds: float = 0.0


def _known(records: Sequence[Record], benchmarks: Sequence[Benchmark]) -> dict[Asked, _Said]:
    """Answers that are there already; another benchmark may ask the same thing of the same image."""
    lengths = {benchmark.name: benchmark.max_new_tokens for benchmark in benchmarks}
    return {
        (r.method, r.image, r.prompt, lengths[r.benchmark]): _Said(r.answer, r.token_ids, r.finish_reason)
        for r in records
        if r.status == "done" and r.benchmark in lengths
    }


@dataclass
class _Run:
    """The state of one run."""

    model: Model
    folder: RunFolder
    batch_size: int
    seed: int
    tick: Callable[[int], object]
    known: dict[Asked, _Said]

    def ask_all(self, benchmark: Benchmark, label: str, method: Any) -> None:
        """One benchmark under one method, in the order of its questions, one synced write a window."""
        done = {record.key for record in self.folder.records}
        items = (benchmark.item(index) for index in range(len(benchmark)))
        todo = (item for item in items if (benchmark.name, label, item.id) not in done)
        longest = benchmark.max_new_tokens
        for window in self._windows(todo, label, longest):
            fresh, reasons = self._ask(window, label, method, longest)
            records = []
            for item in window:
                key = (label, item.image, item.prompt, longest)
                # an answer's time is counted once, with the question that it was made for
                said = fresh.pop(key, None) or self.known.get(key)
                records.append(_record(benchmark, label, item, said, reasons.get(item.image, "")))
            self.folder.append(records)
            self.tick(len(records))

    def _windows(self, items: Iterator[Item], label: str, longest: int) -> Iterator[list[Item]]:
        """Runs of consecutive items with one batch of new questions among them."""
        window: list[Item] = []
        new: set[Asked] = set()
        for item in items:
            window.append(item)
            key = (label, item.image, item.prompt, longest)
            if key not in self.known:
                new.add(key)
            if len(new) >= self.batch_size or len(window) >= 64 * self.batch_size:
                yield window
                window, new = [], set()
        if window:
            yield window

    def _ask(
        self, window: Sequence[Item], label: str, method: Any, longest: int
    ) -> tuple[dict[Asked, _Said], dict[str, str]]:
        """Ask what is not known yet. Returns the new answers, and for unusable images the reason by name."""
        asked: dict[Asked, Item] = {}
        pictures: dict[str, Image.Image] = {}
        reasons: dict[str, str] = {}
        for item in window:
            key = (label, item.image, item.prompt, longest)
            if key in self.known or item.image in reasons:
                continue
            try:
                if item.image not in pictures:
                    pictures[item.image] = open_image(item.path)
                asked[key] = item
            except MmattnError as error:
                reasons[item.image] = str(error)
        if not asked:
            return {}, reasons
        start = time.perf_counter()
        answers = self.model.generate(
            [pictures[item.image] for item in asked.values()],
            [item.prompt for item in asked.values()],
            method=method,
            max_new_tokens=longest,
            batch_size=self.batch_size,
            seed=self.seed,
            # named by file, not by pixels: equal pictures would be numbered within a call, and a call is a window
            keys=[f"{item.image}\0{item.prompt}" for item in asked.values()],
        )
        seconds = round((time.perf_counter() - start) / len(asked), 6)
        said = {
            key: _Said(answer.text, tuple(map(int, answer.token_ids)), answer.finish_reason)
            for key, answer in zip(asked, answers, strict=True)
        }
        self.known.update(said)
        return {key: dataclasses.replace(one, seconds=seconds) for key, one in said.items()}, reasons


def _record(benchmark: Benchmark, label: str, item: Item, said: _Said | None, reason: str) -> Record:
    if said is None:
        reason = f"{item.where}: {reason}" if item.where else reason
        return Record(benchmark.name, label, item.id, item.image, item.prompt, "failed", reason)
    score = benchmark.score(item, said.text)
    return Record(
        benchmark.name,
        label,
        item.id,
        item.image,
        item.prompt,
        "done",
        answer=said.text,
        token_ids=said.token_ids,
        finish_reason=said.finish_reason,
        verdict=score.verdict,
        counts=score.counts,
        details=score.details,
        seconds=said.seconds,
    )


@contextmanager
def _bar(total: int, done: int, progress: bool) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, initial=done, unit="question", disable=not progress, smoothing=0.1) as bar:
        yield bar.update
