"""What a benchmark, one of its questions and one answered question are. Knows no model and no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Totals = Mapping[str, NDArray[np.float64]]
"""Summed counts by name; arrays of any one shape, so that a thousand resamples are one call."""


Key = tuple[str, str, str]
"""Benchmark, method and id: what makes a record unique within a run."""


@dataclass(frozen=True)
class Item:
    """One question to a model.

    `id` is unique within its benchmark. `image` is the name in the annotations (also the unit of the bootstrap);
    `path` is where the file lies on this machine. `meta` is the benchmark's own knowledge, never shown to the model.
    `where` is the place of the question in its file, for messages.
    """

    id: str
    image: str
    path: Path
    prompt: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Score:
    """What a benchmark says of one answer: a word for readers, details, and the counts that its metrics sum up."""

    verdict: str
    counts: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One line of `samples.jsonl`: a question, what the model said, and how that was scored.

    `scores` are of the possible answers, where one of them was chosen by them; None for one that was ruled out.
    """

    benchmark: str
    method: str
    id: str
    image: str
    prompt: str
    status: Literal["done", "failed"]
    reason: str = ""
    answer: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    verdict: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0
    scores: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.benchmark, self.method, self.id

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {**asdict(self), "token_ids": list(self.token_ids)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError when `values` is no record."""
        known = {f.name for f in fields(cls)}
        record = cls(**{name: value for name, value in values.items() if name in known})
        record = cls(**{**asdict(record), "token_ids": tuple(record.token_ids)})
        if not record._is_sound():
            raise ValueError("not a record")
        return record

    def _is_sound(self) -> bool:
        texts = (*self.key, self.image, self.prompt, self.reason, self.answer, self.finish_reason, self.verdict)
        known = [score for score in self.scores.values() if score is not None]
        numbers = (self.seconds, self.peak_mib, *self.counts.values(), *self.token_ids, *known)
        return (
            self.status in ("done", "failed")
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(number, (int, float)) and abs(number) < 1e300 for number in numbers)
        )


class Benchmark(Protocol):
    """One benchmark over one list of questions: how many, get one, score one; and what its counts mean."""

    @property
    def name(self) -> str:
        """Unique within a run, such as "pope-random"."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer that is asked for."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item: ...

    def score(self, item: Item, answer: str) -> Score: ...

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Metrics from summed counts, elementwise; NaN where one is undefined (0 / 0)."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides the numbers, as JSON: scorer and version, digests of questions and images."""

    def files(self) -> dict[str, str]:
        """Texts to keep in the run folder, such as the question list in its published format."""


class Answer(Protocol):
    """What the runner reads of a generation."""

    @property
    def text(self) -> str: ...

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def finish_reason(self) -> str: ...


class Model(Protocol):
    """What the runner needs of a model; `mmattn.load` returns one."""

    @property
    def name(self) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def generate(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        *,
        method: Any,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        keys: Sequence[str],
    ) -> Sequence[Answer]: ...


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part / whole, elementwise; NaN where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    result = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def harmonic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of two rates: NaN where either is undefined, 0 where both are 0."""
    product, total = np.asarray(2 * a * b), np.asarray(a + b)
    result = np.asarray(np.where(total == 0, 0.0, np.nan))
    np.divide(product, total, out=result, where=total > 0)
    return result
