"""A benchmark over the entries of a published file: what all of them share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.further import Further
from mmattn.eval.rows import Listed, placed, rejected
from mmattn.eval.types import Item, Record, Score, Totals


@dataclass(frozen=True)
class Entry:
    """One question of a file.

    Attributes:
        id: unique in the file.
        image: file name, relative to the folder of pictures.
        prompt: what the model is asked.
        meta: what scoring needs, JSON values; it goes into every record's details.
        raw: the entry as the file has it, for files of answers.
    """

    id: str
    image: str
    prompt: str
    meta: Mapping[str, Any]
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)


class ListBenchmark(Further, ABC):
    """One question after another; a subclass says how an answer is scored and what the counts mean.

    Args:
        listed: from the benchmark's own loader.
        images: folder of the pictures.
        max_new_tokens: longest answer; the benchmark's own default if None.
        limit: keep the questions of the first so many pictures only.
    """

    title: ClassVar[str]
    scorer: Mapping[str, str]
    longest: ClassVar[int] = 16

    def __init__(
        self, listed: Listed[Entry], images: Path, *, max_new_tokens: int | None = None, limit: int | None = None
    ) -> None:
        self.name = self.title.lower()
        self.max_new_tokens = max_new_tokens or self.longest
        self.images = tuple(dict.fromkeys(entry.image for entry in listed.entries))[:limit]
        kept = set(self.images)
        self.entries = tuple(entry for entry in listed.entries if entry.image in kept)
        self.by_id = {entry.id: entry for entry in self.entries}
        self._listed = listed
        self._places = placed(listed, lambda entry: entry.id)
        self._folder = images

    def __len__(self) -> int:
        return len(self.entries)

    def item(self, index: int) -> Item:
        """Question `index`; `meta` is never shown to the model."""
        entry = self.entries[index]
        path = self._folder / entry.image
        return Item(entry.id, entry.image, path, entry.prompt, entry.meta, self._places[entry.id])

    @abstractmethod
    def score(self, item: Item, answer: str) -> Score:
        """Verdict, counts, and the entry's `meta` among the details."""

    @abstractmethod
    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Metrics from summed counts."""

    def describe(self) -> dict[str, Any]:
        """Scorer, sizes, digests of the file, the questions and the list of pictures, and unusable entries."""
        return {
            "benchmark": self.title,
            "scorer": dict(self.scorer),
            "questions": len(self.entries),
            "images": len(self.images),
            "max_new_tokens": self.max_new_tokens,
            "file": self._listed.source,
            "file_sha256": self._listed.sha256,
            "rejected": rejected(self._listed),
            "questions_sha256": hashlib.sha256(self._listing().encode()).hexdigest(),
            "images_sha256": hashlib.sha256("\n".join(self.images).encode()).hexdigest(),
        }

    def files(self) -> dict[str, str]:
        """What is asked, one JSON object a line."""
        return {f"questions-{self.name}.jsonl": self._listing()}

    def _listing(self) -> str:
        return json_lines({"id": one.id, "image": one.image, "prompt": one.prompt, **one.meta} for one in self.entries)


def rule(name: str, version: str, source: str) -> Mapping[str, str]:
    """How a result file names the rule that scored; raise the version whenever a verdict can change."""
    return {"name": name, "version": version, "source": source}


def json_lines(values: Any) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def json_list(values: Sequence[Any]) -> str:
    """One JSON list."""
    return json.dumps(list(values), ensure_ascii=False, indent=1) + "\n"


def one_line(text: str) -> str:
    """`text` for a table whose columns tabs part and whose rows line ends part; every letter keeps its place."""
    return text.translate(dict.fromkeys(map(ord, "\t\n\r"), " "))


def with_groups(
    records: Sequence[Record], entries: Sequence[Entry], group: Callable[[Mapping[str, Any]], str], name: str
) -> list[Record]:
    """Count groups of questions that are right together.

    Args:
        records: answered questions, whose details hold `correct` and the entry's meta.
        entries: all questions; a group counts only if all of its questions are answered.
        group: the group's name from a question's meta; "" for none.
        name: the last record of each whole group counts one `name`, and one `name`_right if all are right.
    """
    sizes = Counter(group(entry.meta) for entry in entries)
    right: dict[str, list[bool]] = {}
    joined = []
    for record in records:
        key = group(record.details)
        said = right.setdefault(key, [])
        said.append(bool(record.details["correct"]))
        if key and len(said) == sizes[key]:
            counts = {**record.counts, name: 1.0, f"{name}_right": float(all(said))}
            record = replace(record, counts=counts)
        joined.append(record)
    return joined
