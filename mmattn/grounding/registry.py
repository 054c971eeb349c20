"""Grounding methods by name: `locator("tag(heads=5)")`."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any

from mmattn.errors import MmattnError, unknown
from mmattn.grounding.locator import Locator
from mmattn.grounding.maps import Contrast, Heads, Mean, Rollout
from mmattn.grounding.paths import Flow, Relevance
from mmattn.grounding.tag import Tag

LOCATORS: dict[str, type[Locator]] = {
    kind.name: kind for kind in (Tag, Mean, Heads, Contrast, Rollout, Relevance, Flow)
}
_EXAMPLE = 'Write for example "tag", "tag(heads=5)" or "heads(chosen=[(4, 0)])".'


def locator(method: str | Locator) -> Locator:
    """A grounding method from an instance, a name, or a name with hyper-parameters: "tag(heads=5, tokens='last')".

    Raises:
        MmattnError: unknown name or hyper-parameter, or a value that the method does not take.
    """
    if isinstance(method, Locator):
        return method
    match = (
        re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", method, flags=re.DOTALL) if isinstance(method, str) else None
    )
    if match is None:
        raise MmattnError(f"Cannot read the grounding method {method!r}", _EXAMPLE)
    name = match[1].lower()
    if name not in LOCATORS:
        raise unknown("grounding method", name, LOCATORS)
    kind = LOCATORS[name]
    values = _arguments(name, match[2] or "")
    known = [field.name for field in dataclasses.fields(kind)]
    for given in values:
        if given not in known:
            raise unknown(f"hyper-parameter of {name}", given, known)
    return kind(**values)


def _arguments(name: str, text: str) -> dict[str, Any]:
    """The literals of "a=1, b='x'" by name."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        # Brackets that close early make something else of it, such as two calls joined by "if".
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("hyper-parameters need their names")
        return {_name(word): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MmattnError(f"Cannot read {name}({text}): {error}", _EXAMPLE) from error


def _name(word: ast.keyword) -> str:
    if word.arg is None:
        raise ValueError("hyper-parameters need their names")
    return word.arg
