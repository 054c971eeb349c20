"""Counts and rates of questions whose answer is yes or no."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mmattn.eval.types import Totals, harmonic, ratio

_CELLS = {
    ("yes", "yes"): "true_yes",
    ("no", "no"): "true_no",
    ("no", "yes"): "false_yes",
    ("yes", "no"): "false_no",
}


def cell(label: str, verdict: str) -> str:
    """The count that an answer belongs to; an answer that is neither yes nor no is lost."""
    return _CELLS.get((label, verdict), f"lost_{label}")


def tally(pairs: Iterable[tuple[str, str]]) -> dict[str, NDArray[np.float64]]:
    """Totals of (label, verdict) pairs."""
    counts = Counter(cell(*pair) for pair in pairs)
    return {name: np.asarray(float(count)) for name, count in counts.items()}


def rates(totals: Totals, positive: str = "yes") -> dict[str, NDArray[np.float64]]:
    """Rates with `positive` as the class that is looked for; a lost answer is wrong, and neither a yes nor a no."""
    zero = np.zeros_like(next(iter(totals.values()))) if totals else np.zeros(())
    negative = "no" if positive == "yes" else "yes"

    def total(*names: str) -> NDArray[np.float64]:
        return np.asarray(sum((totals.get(name, zero) for name in names), zero))

    hits, misses, alarms = f"true_{positive}", f"false_{negative}", f"false_{positive}"
    precision = ratio(total(hits), total(hits, alarms))
    recall = ratio(total(hits), total(hits, misses, f"lost_{positive}"))
    everything = total(*_CELLS.values(), "lost_yes", "lost_no")
    return {
        "accuracy": ratio(total("true_yes", "true_no"), everything),
        "precision": precision,
        "recall": recall,
        "f1": harmonic(precision, recall),
        "yes_ratio": ratio(total("true_yes", "false_yes"), everything),
        "false_yes_rate": ratio(total("false_yes"), total("false_yes", "true_no", "lost_no")),
    }
