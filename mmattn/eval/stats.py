"""Metrics with bootstrap intervals. Resamples images, not questions: questions about one picture are not independent.

Every metric is a function of summed counts, so a resample is a vector of image weights and a thousand resamples are
one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.types import Record, Totals

Array = NDArray[np.float64]
Metrics = Callable[[Totals], Mapping[str, Array]]

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A metric (or a difference) with its interval; None where undefined, or for the interval of a single image."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON; undefined numbers become null, never NaN."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Counts:
    """Counts summed over the records of each image: `table` is (images, fields)."""

    images: tuple[str, ...]
    fields: tuple[str, ...]
    table: Array

    @classmethod
    def of(cls, records: Iterable[Record]) -> Counts:
        """Sum the counts of the scored records by image, in the order of image names."""
        scored = [record for record in records if record.status == "done"]
        images = tuple(sorted({record.image for record in scored}))
        fields = tuple(sorted({name for record in scored for name in record.counts}))
        rows = {image: row for row, image in enumerate(images)}
        table = np.zeros((len(images), len(fields)))
        for record in scored:
            table[rows[record.image]] += [record.counts.get(name, 0.0) for name in fields]
        return cls(images, fields, table)

    def totals(self, weights: Array) -> dict[str, Array]:
        """Weighted sums over images; `weights` is (..., images)."""
        sums = weights @ self.table
        return {name: sums[..., column] for column, name in enumerate(self.fields)}


def resample(images: int, resamples: int = RESAMPLES) -> Array:
    """Weights (resamples, images): how often each image is drawn with replacement; the same on every call."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)


def estimates(counts: Counts, metrics: Metrics) -> dict[str, Estimate]:
    """Each metric with its 95 % percentile interval."""
    if not counts.images:
        return {}
    values = metrics(counts.totals(np.ones(len(counts.images))))
    spread = metrics(counts.totals(resample(len(counts.images)))) if len(counts.images) > 1 else {}
    return {name: estimate(value, spread.get(name)) for name, value in values.items()}


def values(counts: Counts, metrics: Metrics) -> dict[str, float | None]:
    """Each metric without an interval."""
    found = metrics(counts.totals(np.ones(len(counts.images)))) if counts.images else {}
    return {name: estimate(value, None).value for name, value in found.items()}


def differences(ours: Counts, base: Counts, metrics: Metrics) -> dict[str, Estimate]:
    """`ours` minus `base` for each metric, on the images of both, each resample drawing the same images for both."""
    both = sorted(set(ours.images) & set(base.images))
    if not both:
        return {}
    ours, base = _only(ours, both), _only(base, both)

    def gap(weights: Array) -> dict[str, Array]:
        first, second = metrics(ours.totals(weights)), metrics(base.totals(weights))
        return {name: np.asarray(first[name] - second[name]) for name in first}

    spread = gap(resample(len(both))) if len(both) > 1 else {}
    return {name: estimate(value, spread.get(name)) for name, value in gap(np.ones(len(both))).items()}


def _only(counts: Counts, images: Sequence[str]) -> Counts:
    rows = {image: row for row, image in enumerate(counts.images)}
    return Counts(tuple(images), counts.fields, counts.table[[rows[image] for image in images]])


def estimate(value: Array, spread: Array | None) -> Estimate:
    """A value with the interval of its resampled values `spread`; undefined ones are left out."""
    """A value with the interval of its resampled values `spread`; undefined ones are left out."""
    point = float(value)
    if not np.isfinite(point):
        return Estimate(None)
    defined = spread[np.isfinite(spread)] if spread is not None else np.empty(0)
    if not defined.size:
        return Estimate(point)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(point, float(low), float(high))
