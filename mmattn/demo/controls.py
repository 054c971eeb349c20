"""Controls made from the methods' own dataclasses: a new method or hyper-parameter shows up by itself."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

import mmattn

# Hyper-parameters that are words. All others that take text are left out: they may name files of the server.
WORDS = frozenset({"dimensions", "on", "heads", "role", "general", "layers", "layer", "head", "scorer"})


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
    """The hyper-parameters of these methods that visitors may set, in order."""
    known = {one.name: one.parameters for one in mmattn.methods()}
    return [
        Parameter(method, name, default)
        for method in methods
        for name, default in known[method].items()
        if isinstance(default, (int, float)) or name in WORDS
    ]


def harmless(method: str) -> str:
    """`method`, if it names no file.

    Raises:
        MmattnError: it cannot be read, or sets a hyper-parameter that visitors may not set.
    """
    try:
        words = [one for one in ast.walk(ast.parse(method.strip(), mode="eval")) if isinstance(one, ast.keyword)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise mmattn.MmattnError(f"Cannot read the method {method!r}", 'Write for example "var(p=0.5)+vcd".') from error
    for word in words:
        number = isinstance(word.value, (ast.Constant, ast.UnaryOp)) and not isinstance(
            getattr(word.value, "value", None), (str, bytes)
        )
        if word.arg not in WORDS and not number:
            raise mmattn.MmattnError(f"{word.arg} cannot be set on this page", "Use it in Python: it names a file.")
    return method


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
