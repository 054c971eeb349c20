"""One front for the methods that steer attention: what to emphasise, how strongly, and by which of them.

    model.generate(picture, "Is the cup red?", emphasise=mmattn.emphasise("cup", 4))
    model.generate(picture, "Is the cup red?", emphasise=mmattn.emphasise((40, 60, 120, 140), 4, by="spotlight"))

All take one strength, from 1 (the plain model) upwards; what each makes of it stands in `STEERERS`. What is marked
travels with its sample, so that the samples of a batch may mark different things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmattn.adapters import Mark, Sample
from mmattn.checks import number
from mmattn.decoding.act import ACT
from mmattn.decoding.instaboost import InstABoost
from mmattn.decoding.method import Combined, Method
from mmattn.decoding.pasta import PASTA
from mmattn.decoding.split_softmax import SplitSoftmax
from mmattn.decoding.spotlight import SpotLight
from mmattn.decoding.steering import Steering
from mmattn.errors import MmattnError, unknown

# By name, what a strength of 1 or more means to each: 1 is its neutral setting.
STEERERS: dict[str, Callable[[float], Steering]] = {
    "instaboost": lambda strength: InstABoost(strength),
    "act": lambda strength: ACT(1 / strength),
    "pasta": lambda strength: PASTA(1 / strength),
    "spotlight": lambda strength: SpotLight(1 - 1 / strength),
    "split-softmax": lambda strength: SplitSoftmax(1 / strength),
}


@dataclass(frozen=True)
class Emphasis:
    """What to emphasise, and how.

    Attributes:
        what: as `generate(emphasise=...)` takes it.
        method: how; steers to what is marked.
    """

    what: Any
    method: Method


def emphasise(what: Any, strength: float = 2.0, by: str = "instaboost") -> Emphasis:
    """Emphasise words of the prompt, a part of the picture, or all of it.

    Args:
        what: words, a box (x0, y0, x1, y1) in pixels of the original picture, a `Mark`, or several of these in a
            list; with several prompts a list has one entry for each, None for nothing.
        strength: 1 is the plain model, larger is stronger: the factor M of InstABoost, 1 / alpha of PASTA, 1 / k of
            split-softmax, 1 / (1 - target) of SpotLight, and 1 / beta of ACT.
        by: the method that does it, of `STEERERS`.

    Returns:
        For `generate(emphasise=...)` and `attend(emphasise=...)`.
    """
    if by not in STEERERS:
        raise unknown("method of emphasis", by, STEERERS)
    return Emphasis(what, towards_marks(STEERERS[by](number("The strength of an emphasis", strength, 1, 1e6))))


def towards_marks(method: Method) -> Method:
    """`method` with all of its steering towards marks."""
    if isinstance(method, Combined):
        return Combined(tuple(map(towards_marks, method.parts)))
    return method.towards("mark") if isinstance(method, Steering) else method


def joined(method: Method, emphasis: Any) -> tuple[Method, Any]:
    """The method to decode by, and what is emphasised; marks alone go with a method that steers, or with the default.

    An `Emphasis` acts beside `method`, whose own steering stays what it is.
    """
    if emphasis is None:
        if steers(method, "mark"):
            raise MmattnError(f"{method.label} steers to a mark, and there is none", "Pass emphasise=...")
        return method, None
    if not isinstance(emphasis, Emphasis):
        if steers(method):
            return towards_marks(method), emphasis
        emphasis = emphasise(emphasis)
    parts = method.parts if isinstance(method, Combined) else (method,)
    kept = tuple(one for one in parts if type(one) is not Method)  # plain decoding adds nothing
    return Combined((emphasis.method, *kept)) if kept else emphasis.method, emphasis.what


def steers(method: Method, on: str = "") -> bool:
    """Whether any part of `method` steers attention (to `on`)."""
    parts = method.parts if isinstance(method, Combined) else (method,)
    return any(isinstance(one, Steering) and on in ("", one.on) for one in parts)


def marked(samples: Sequence[Sample], what: Any, single: bool) -> list[Sample]:
    """`samples` with their marks.

    Args:
        what: for all samples one thing, or a list with an entry for each; for a `single` sample a list is all its own.

    Raises:
        MmattnError: nothing that can be marked, or another number of entries than of samples.
    """
    if what is None:
        return list(samples)
    entries = what if _several(what) and not single else [what] * len(samples)
    if len(entries) != len(samples):
        raise MmattnError(
            f"There are {len(entries)} entries to emphasise for {len(samples)} prompts", "Give one per prompt, or None."
        )
    found = []
    for sample, entry in zip(samples, entries, strict=True):
        several = entry if _several(entry) else [] if entry is None else [entry]
        marks = tuple(map(Mark.of, several))
        if marks and not sample.images:
            raise MmattnError("Emphasis changes text after a picture, and there is none", "Pass an image.")
        found.append(replace(sample, marks=marks))
    return found


def _several(what: Any) -> bool:
    """Whether this is a list, and not the four numbers of a box."""
    return isinstance(what, (list, tuple)) and not (
        len(what) == 4 and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in what)
    )
