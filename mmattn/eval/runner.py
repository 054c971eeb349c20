"""Asks every question of every benchmark under every method, and resumes. Knows no benchmark and no method."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from mmattn.errors import MmattnError
from mmattn.eval import compare, cost, further, provenance, stats
from mmattn.eval.asking import Asking, Task, batches, known_from, tasks
from mmattn.eval.parts import Part, earlier, team
from mmattn.eval.results import summarise
from mmattn.eval.store import RunFolder, forget
from mmattn.eval.types import Benchmark, Model, Record

FORMAT = "mmattn-eval/2"
Half = Literal["tune", "held-out"]


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
    shard: Part | None = None,
    half: Half | None = None,
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
        shard: ask this part only, into a folder of its own in `out`; a call without it puts the parts together.
        half: ask about one half of the pictures only, "tune" or "held-out"; which one a picture is in, its name says.

    Processes that `accelerate launch` or `torchrun` started together share the questions.

    Returns:
        What `results.json` holds.

    Raises:
        MmattnError: other settings in the folder, or no question could be asked at all.
    """
    if batch_size < 1:
        raise MmattnError(f"Batch size {batch_size} is too small", "It must be at least 1.")
    named = label_methods(methods)
    every = [task for task in tasks(benchmarks, list(named)) if half in (None, half_of(task.item.image))]
    settings = _settings(model, benchmarks, named, seed)
    if half and not every:
        raise MmattnError(f"None of the pictures is in the {half} half", "Ask about more of them.")
    if half:
        settings["benchmarks"] = {name: _halved(one, name, half, every) for name, one in settings["benchmarks"].items()}
    crew = team()
    if shard and crew.size > 1:
        raise MmattnError("A shard is one process, and these are several", "Drop --shard, or the launcher.")
    part = shard or crew.part
    main = shard is None and crew.rank == 0
    if crew.rank:
        crew.gather(None)  # the first process makes the folder ready, and the others look into it
    if main and fresh:
        shutil.rmtree(out / "shards", ignore_errors=True)
    if shard and fresh:
        forget(out)  # but not the other shards, which may be running
    with RunFolder(out if main else part.folder(out), settings, provenance.commit(), fresh=fresh) as folder:
        if main:
            crew.gather(None)
        if main or shard:
            _list(folder, benchmarks)
        before = crew.gather(earlier(out, folder.settings, main))
        known = {one.key: one for records, _ in before for one in records}
        if main:
            folder.credit(commit for _, commits in before for commit in commits)
        mine = part.chosen(every)
        todo = [task for task in mine if task.key not in known]
        asking = Asking(model, named, batch_size, seed, known_from(every, known))
        _ask(asking, folder, todo, len(mine) - len(todo), progress and crew.rank == 0)
        if main:
            _put_together(folder, [known.values(), *crew.gather(folder.records)])
        else:
            crew.gather(folder.records)
        folder.settle(task.key for task in every)
        results = _results(folder, benchmarks, named) if main or shard else {}
    return crew.gather(results)[0]


def _list(folder: RunFolder, benchmarks: Sequence[Benchmark]) -> None:
    """Write what is asked."""
    for benchmark in benchmarks:
        for name, text in benchmark.files().items():
            folder.write(name, text)


def _put_together(folder: RunFolder, found: Iterable[Iterable[Record]]) -> None:
    """Add what other parts answered."""
    have = {record.key for record in folder.records}
    others = {one.key: one for records in found for one in records if one.key not in have}
    if others:
        folder.append(others.values())


def _results(folder: RunFolder, benchmarks: Sequence[Benchmark], methods: Mapping[str, Any]) -> dict[str, Any]:
    """Write the results."""
    results = summarise(folder.settings, folder.commits, folder.records, benchmarks, list(methods))
    results["categories"] = {one.name: compare.by_category(one, folder.records) for one in benchmarks}
    results["passes"] = cost.passes(methods)
    further.write_answers(benchmarks, folder.records, list(methods), folder.path)
    folder.write("results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    failed = [record for record in folder.records if record.status == "failed"]
    if failed and len(failed) == len(folder.records):
        raise MmattnError("No question could be asked; the first failed because: " + failed[0].reason)
    return results


def half_of(image: str) -> Half:
    """The same for a picture in every benchmark and on every machine."""
    return "tune" if hashlib.sha256(image.encode(errors="surrogatepass")).digest()[0] % 2 else "held-out"


def _halved(described: Mapping[str, Any], name: str, half: Half, every: Sequence[Task]) -> dict[str, Any]:
    """A benchmark's description with the sizes of what is asked of it."""
    items = {task.item.id: task.item.image for task in every if task.benchmark.name == name}
    sizes = {"images": len(set(items.values())), "questions": len(items)}
    return {**described, "half": half, **{what: size for what, size in sizes.items() if what in described}}


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


def _ask(asking: Asking, folder: RunFolder, todo: Sequence[Task], done: int, progress: bool) -> None:
    """Ask, and write each batch as it comes."""
    with tqdm(total=done + len(todo), initial=done, unit="question", disable=not progress, smoothing=0.1) as bar:
        for batch in batches(todo, asking.batch_size, asking.known):
            bar.set_description(batch[0].label)
            folder.append(asking.records(batch))
            bar.update(len(batch))
