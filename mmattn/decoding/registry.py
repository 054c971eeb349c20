"""Methods by name: `resolve("vcd(alpha=0.5)")`, and the list that `mmattn methods` prints."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmattn.decoding.act import ACT
from mmattn.decoding.avisc import AvisC
from mmattn.decoding.boost import Boost
from mmattn.decoding.cmai import CMAI
from mmattn.decoding.deco import DeCo
from mmattn.decoding.dola import DoLa
from mmattn.decoding.iava import IAVA
from mmattn.decoding.icd import ICD
from mmattn.decoding.instaboost import InstABoost
from mmattn.decoding.m3id import M3ID
from mmattn.decoding.method import Card, Combined, Method
from mmattn.decoding.pai import PAI
from mmattn.decoding.paint import PAINT
from mmattn.decoding.pasta import PASTA
from mmattn.decoding.prompted import AttentionPrompt
from mmattn.decoding.rbd import RBD
from mmattn.decoding.seam import VSEAM
from mmattn.decoding.sid import SID
from mmattn.decoding.split_softmax import SplitSoftmax
from mmattn.decoding.spotlight import SpotLight
from mmattn.decoding.var import VAR
from mmattn.decoding.vcd import VCD
from mmattn.decoding.vhr import VHR
from mmattn.errors import MmattnError, unknown

_EDITS = (Boost, VAR, PAI, PAINT, VHR, VSEAM, InstABoost, PASTA, SpotLight, SplitSoftmax, ACT, CMAI)
_CONTRASTS = (VCD, ICD, M3ID, IAVA, AvisC, SID, RBD)
_LAYERS = (DoLa, DeCo)
METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (Method, *_EDITS, *_CONTRASTS, *_LAYERS, AttentionPrompt)
}


@dataclass(frozen=True)
class MethodInfo:
    """One entry of the list of methods.

    Attributes:
        card: one line, source, where the formula comes from, what it costs, and presets.
        kind: "plain", "edit" (of attention), "picture" (changes what is shown) or "rule" (for the next token; it may
            edit, too).
        plain_transformers: how plain `generate` does the same: "mmattn.edit", "mmattn.custom_generate", or "".
        parameters: hyper-parameters with their defaults. meanings: what each is.
    """

    name: str
    card: Card
    kind: str
    plain_transformers: str
    parameters: dict[str, Any]
    meanings: dict[str, str]


def methods() -> list[MethodInfo]:
    """Every method: name, one line, source, what it costs, hyper-parameters with defaults and meanings."""
    return [_info(name, kind) for name, kind in METHODS.items()]


def _info(name: str, kind: type[Method]) -> MethodInfo:
    method = kind()
    alone = not (method.rules or method.branches() or method.repaints)
    edits = kind.edits is not Method.edits  # without asking for them: some need a file first
    what = "picture" if method.repaints else "rule" if method.rules else "edit" if edits else "plain"
    there = "mmattn.edit" if alone else "" if method.repaints else "mmattn.custom_generate"
    parameters = {one.name: one.default for one in dataclasses.fields(kind)}
    return MethodInfo(name, kind.card, what, there, parameters, _meanings(kind, parameters))


def _meanings(kind: type[Method], names: Iterable[str]) -> dict[str, str]:
    """What the class's own words say of its attributes."""
    words = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8,}.*)*)", words, flags=re.MULTILINE)
    said = {name: " ".join(text.split()) for several, text in entries for name in several.split(", ")}
    return {name: said[name] for name in names if name in said}


def resolve(method: str | Method) -> Method:
    """A method from an instance, a name, or a name with hyper-parameters: "vcd(alpha=0.5, noise_step=700)".

    Several are joined with "+": "boost(strength=2)+vcd" edits attention in both branches of VCD.

    Raises:
        MmattnError: unknown name (near matches are listed), unknown or malformed hyper-parameter, or a combination
            with "+" of methods that cannot be joined.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise MmattnError(f"A method is a name or an instance, not {type(method).__name__}", _example())
    parts = [part.strip() for part in _split(method, "+")]
    if len(parts) > 1:
        chosen = [one for one in map(resolve, parts) if type(one) is not Method]  # plain decoding adds nothing
        return Combined(tuple(chosen)) if len(chosen) > 1 else (chosen or [Method()])[0]
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", method, flags=re.DOTALL)
    if match is None:
        raise MmattnError(f"Cannot read the method {method!r}", _example())
    name = match[1].lower()
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return _build(METHODS[name], match[2] or "")


def split_methods(text: str) -> list[str]:
    """The single methods of a comma-separated list; commas inside brackets do not split."""
    return [part.strip() for part in _split(text, ",") if part.strip()]


def _split(text: str, separator: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        depth += 0 if quote else (character == "(") - (character == ")")
        if character == separator and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _build(kind: type[Method], arguments: str) -> Method:
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        # Brackets that close early make something else of it, such as two calls joined by "if".
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("that is more than a list of hyper-parameters")
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("hyper-parameters need their names")
        values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MmattnError(f"Cannot read {kind.name}({arguments}): {error}", _example()) from error
    for name, value in values.items():
        if name not in known:
            raise unknown(f"hyper-parameter of {kind.name}", name, known)
        word = isinstance(known[name], str)
        if isinstance(value, bool) or not isinstance(value, str if word else (int, float)):
            what = 'a word in quotes, such as "clip",' if word else "a number,"
            raise MmattnError(f"{kind.name} {name} must be {what} not {value!r}", _example())
    return kind(**values)


def _example() -> str:
    return 'Write for example "vcd" or "vcd(alpha=0.5, beta=0.1)".'
