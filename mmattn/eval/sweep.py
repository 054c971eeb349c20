"""Choosing a method's hyper-parameters: every combination on tuning pictures, the best one on others.

Nothing is chosen on what is reported.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmattn.decoding.method import Combined, Method
from mmattn.errors import MmattnError, unknown

BY = "f1"  # sees both what is missed and what is invented; CHAIR alone rewards silence
LESS_IS_BETTER = ("chair_i", "chair_s", "false_yes_rate")

Grid = dict[str, list[Any]]


def grid(texts: Sequence[str]) -> Grid:
    """From ["alpha=0,0.5,1", "beta=0.1,0.2"]."""
    found: Grid = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip()
        try:
            values = list(ast.literal_eval(f"[{listed}]"))
        except (SyntaxError, ValueError) as error:
            raise MmattnError(f"Cannot read the sweep {text!r}", "Write for example alpha=0,0.5,1,2.") from error
        if not name or not equals or not values:
            raise MmattnError(f"The sweep {text!r} names no values", "Write for example alpha=0,0.5,1,2.")
        if name in found:
            raise MmattnError(f"The sweep of {name} is given twice", "Give all its values in one list.")
        if len({repr(value) for value in values}) < len(values):
            raise MmattnError(f"The sweep {text!r} repeats a value", "Name each once.")
        found[name] = values
    return found


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        variants: for each method that is swept, by its label: it under every combination of values, in their order.
        others: methods that are compared as they are; plain decoding if there are none.
    """

    variants: dict[str, list[Method]]
    others: list[Method]

    @property
    def tuning(self) -> list[Method]:
        """All methods of the run on the tuning pictures."""
        return [*self.others, *itertools.chain.from_iterable(self.variants.values())]


def plan(methods: Sequence[Method], swept: Grid) -> Plan:
    """Which methods have the hyper-parameters of the grid, and which are only compared.

    Raises:
        MmattnError: no method has them all, or a value does not suit.
    """
    variants: dict[str, list[Method]] = {}
    others: list[Method] = []
    for method in methods:
        if all(_owners(method, name) for name in swept):
            combinations = itertools.product(*swept.values())
            variants[method.label] = [_changed(method, dict(zip(swept, one, strict=True))) for one in combinations]
        else:
            others.append(method)
    if not variants:
        parameters = {name for method in methods for part in _parts(method) for name in _fields(part)}
        missing = next(name for name in swept if not any(_owners(method, name) for method in methods))
        raise unknown("hyper-parameter", missing, parameters)
    return Plan(variants, others or [Method()])


def best(
    results: Mapping[str, Any], variants: Mapping[str, Sequence[Method]], by: str = BY
) -> tuple[list[Method], dict[str, dict[str, float | None]]]:
    """The best variant of each method, and by method the mean of `by` over benchmarks of each variant.

    The first of equal ones. `results` are those of the tuning pictures; benchmarks without the metric do not count.
    """
    known = {name for methods in results["metrics"].values() for one in methods.values() for name in one}
    if by not in known:
        raise unknown("metric", by, known)
    sign = -1 if by in LESS_IS_BETTER else 1
    chosen, table = [], {}
    for label, several in variants.items():
        means = {one.label: _mean(results, one.label, by) for one in several}
        chosen.append(max(several, key=lambda one: _rank(means[one.label], sign)))
        table[label] = means
    return chosen, table


def _rank(value: float | None, sign: int) -> float:
    return -float("inf") if value is None else sign * value


def _mean(results: Mapping[str, Any], label: str, by: str) -> float | None:
    """None where it is undefined in a benchmark that has it."""
    values = [methods[label][by]["value"] for methods in results["metrics"].values() if by in methods.get(label, {})]
    return None if not values or None in values else sum(values) / len(values)


def _parts(method: Method) -> tuple[Method, ...]:
    return method.parts if isinstance(method, Combined) else (method,)


def _fields(method: Method) -> list[str]:
    return [field.name for field in dataclasses.fields(method)]


def _owners(method: Method, name: str) -> list[Method]:
    return [part for part in _parts(method) if name in _fields(part)]


def _changed(method: Method, values: Mapping[str, Any]) -> Method:
    for name in values:
        owners = [one.name for one in _owners(method, name)]
        if len(owners) > 1:
            raise MmattnError(f"{' and '.join(owners)} both have {name}", "Sweep one of them alone.")
    parts = []
    for part in _parts(method):
        mine = {name: value for name, value in values.items() if name in _fields(part)}
        try:
            parts.append(dataclasses.replace(part, **mine))
        except TypeError as error:
            raise MmattnError(f"{part.name} does not take {mine}", "See `mmattn methods` for its values.") from error
    return Combined(tuple(parts)) if isinstance(method, Combined) else parts[0]
