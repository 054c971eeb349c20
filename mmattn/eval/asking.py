"""Which questions go to the model together, and what comes back. Knows no folder, no benchmark and no method."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmattn.errors import MmattnError
from mmattn.eval import cost
from mmattn.eval.types import Benchmark, Item, Key, Model, Record
from mmattn.images import open_image

Asked = tuple[str, str, str, int]
"""Method, image file, prompt, longest answer: the same four give the same answer, in whatever batch."""


@dataclass(frozen=True)
class Task:
    """One question of one benchmark under one method."""

    benchmark: Benchmark
    label: str
    item: Item

    @property
    def key(self) -> Key:
        """The key of its record."""
        return self.benchmark.name, self.label, self.item.id

    @property
    def asked(self) -> Asked:
        return self.label, str(self.item.path), self.item.prompt, self.benchmark.max_new_tokens


@dataclass(frozen=True)
class Said:
    """An answer, and what it cost."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0


def tasks(benchmarks: Iterable[Benchmark], labels: Iterable[str]) -> list[Task]:
    """Everything that a run asks, in the order of its samples file."""
    names = list(labels)
    found = []
    for benchmark in benchmarks:
        items = [benchmark.item(index) for index in range(len(benchmark))]
        found += [Task(benchmark, label, item) for label in names for item in items]
    return found


def batches(tasks: Iterable[Task], size: int, known: Mapping[Asked, Said]) -> Iterator[list[Task]]:
    """Tasks with at most `size` new questions among them, of one method and one length limit.

    Questions about one picture stand together, whichever benchmark asks them, so that its features and the common
    beginning of its prompts are computed once; they are divided only where they alone are more than `size`.
    """
    alike: dict[tuple[str, int], dict[str, list[Task]]] = {}
    for task in tasks:
        pictures = alike.setdefault((task.label, task.benchmark.max_new_tokens), {})
        pictures.setdefault(str(task.item.path), []).append(task)
    for pictures in alike.values():
        batch: list[Task] = []
        new: set[Asked] = set()
        for group in pictures.values():
            fresh = {task.asked for task in group if task.asked not in known}
            if new and len(new) + len(fresh) > size:
                yield batch
                batch, new = [], set()
            for task in group:
                if task.asked in fresh and len(new) == size:
                    yield batch
                    batch, new = [], set()
                batch.append(task)
                if task.asked in fresh:
                    fresh.remove(task.asked)
                    new.add(task.asked)
        if batch:
            yield batch


@dataclass
class Asking:
    """A model, how it is asked, and what it has said so far."""

    model: Model
    methods: Mapping[str, Any]
    batch_size: int
    seed: int
    known: dict[Asked, Said] = field(default_factory=dict)

    def records(self, batch: Sequence[Task]) -> list[Record]:
        """One batch, answered and scored."""
        fresh, reasons = self._ask(batch)
        records = []
        for task in batch:
            # an answer's cost is counted once, with the question that it was made for
            said = fresh.pop(task.asked, None) or self.known.get(task.asked)
            records.append(_record(task, said, reasons.get(str(task.item.path), "")))
        return records

    def _ask(self, batch: Sequence[Task]) -> tuple[dict[Asked, Said], dict[str, str]]:
        """Ask what is not known yet. Returns the new answers, and for unusable images the reason by path."""
        new: dict[Asked, Item] = {}
        pictures: dict[str, Image.Image] = {}
        reasons: dict[str, str] = {}
        for task in batch:
            path = str(task.item.path)
            if task.asked in self.known or path in reasons:
                continue
            try:
                if path not in pictures:
                    pictures[path] = open_image(task.item.path)
                new[task.asked] = task.item
            except MmattnError as error:
                reasons[path] = str(error)
        if not new:
            return {}, reasons
        start = time.perf_counter()
        with cost.memory() as peak:
            answers = self.model.generate(
                [pictures[str(item.path)] for item in new.values()],
                [item.prompt for item in new.values()],
                method=self.methods[batch[0].label],
                max_new_tokens=batch[0].benchmark.max_new_tokens,
                batch_size=self.batch_size,
                seed=self.seed,
                # named by file, not by pixels: equal pictures would be numbered within a call, and a call is a batch
                keys=[f"{item.image}\0{item.prompt}" for item in new.values()],
            )
        seconds = round((time.perf_counter() - start) / len(new), 6)
        said = {
            key: Said(
                answer.text,
                tuple(map(int, answer.token_ids)),
                answer.finish_reason,
                getattr(answer, "scores", None) or {},  # of choices alone
            )
            for key, answer in zip(new, answers, strict=True)
        }
        self.known.update(said)
        spent = {key: dataclasses.replace(one, seconds=seconds, peak_mib=peak()) for key, one in said.items()}
        return spent, reasons


def known_from(tasks: Iterable[Task], records: Mapping[Key, Record]) -> dict[Asked, Said]:
    """What earlier records answer; another benchmark may ask the same thing of the same image."""
    found = {}
    for task in tasks:
        record = records.get(task.key)
        if record is not None and record.status == "done":
            found[task.asked] = Said(record.answer, record.token_ids, record.finish_reason, record.scores)
    return found


def _record(task: Task, said: Said | None, reason: str) -> Record:
    item = task.item
    if said is None:
        reason = f"{item.where}: {reason}" if item.where else reason
        return Record(*task.key, item.image, item.prompt, "failed", reason)
    score = task.benchmark.score(item, said.text)
    return Record(
        *task.key,
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
        peak_mib=said.peak_mib,
        scores=said.scores,
    )
