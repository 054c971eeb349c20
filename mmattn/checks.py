"""Checks of what users pass in: numbers of the right kind and range, told in one line when they are not."""

from __future__ import annotations

import math
import operator
from typing import Any

from mmattn.errors import MmattnError


def whole(what: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int in low..high (inclusive); numpy integers are welcome, booleans and floats are not.

    Raises:
        MmattnError: it is no whole number, or out of range.
    """
    bounds = f"of at least {low}" if high is None else f"in {low}..{high}"
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise MmattnError(f"{what} must be a whole number {bounds}, not {_shown(value)}")
    return number


def number(what: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as a finite float in low..high (inclusive).

    Raises:
        MmattnError: it is no finite number, or out of range.
    """
    bounds = f"of at least {low:g}" if high == math.inf else f"in {low:g}..{high:g}"
    try:
        real = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        real = math.nan
    if not math.isfinite(real) or not low <= real <= high:
        raise MmattnError(f"{what} must be a finite number {bounds}, not {_shown(value)}")
    return real


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of many thousand digits
        return "that"
    return text if len(text) <= 60 else f"{text[:57]}..."
