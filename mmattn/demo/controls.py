"""Controls made from the methods' own dataclasses: a new method or hyper-parameter shows up by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

import mmattn


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter of one method."""

    method: str
    name: str
    default: Any

    def control(self) -> gr.Number | gr.Textbox:
        """The field that fits the type of the default."""
        common: dict[str, Any] = {"label": f"{self.method} {self.name}", "key": (self.method, self.name)}
        common.update(interactive=True, min_width=90)
        if isinstance(self.default, str) or self.default is None:
            return gr.Textbox(self.default or "", placeholder="default", **common)
        return gr.Number(self.default, precision=0 if isinstance(self.default, int) else None, **common)

    def written(self, value: Any) -> str:
        """As a hyper-parameter of a method's name; "" at its default."""
        if value in (self.default, None, ""):
            return ""
        if self.default is None:  # a number or none: the method says what it takes
            return f"{self.name}={value}"
        return f"{self.name}={value!r}"


def parameters(methods: Sequence[str]) -> list[Parameter]:
    """All hyper-parameters of these methods, in order."""
    known = {one.name: one.parameters for one in mmattn.methods()}
    return [Parameter(method, name, default) for method in methods for name, default in known[method].items()]


def expression(methods: Sequence[str], values: Sequence[Any]) -> str:
    """Names and the values of their `parameters` as one method: "var(p=0.5)+vcd"."""
    given: dict[str, list[str]] = {method: [] for method in methods}
    for parameter, value in zip(parameters(methods), values, strict=True):
        given[parameter.method].append(parameter.written(value))
    parts = [(method, ", ".join(filter(None, words))) for method, words in given.items()]
    return "+".join(f"{method}({words})" if words else method for method, words in parts) or "greedy"


def assembled(methods: Sequence[str]) -> Callable[..., str]:
    """A handler that gets the controls' values and gives the expression."""
    return lambda *values: expression(methods, values)
