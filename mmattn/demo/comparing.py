"""The same question under several methods: answers, where they part, what they invent, and what they cost."""

from __future__ import annotations

import html
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import mmattn
from mmattn.decoding import Combined, Method, resolve
from mmattn.demo.asking import checked
from mmattn.demo.controls import harmless
from mmattn.demo.examples import Examples, Mention
from mmattn.demo.state import Picture, Settings
from mmattn.demo.streaming import Stream
from mmattn.demo.words import differing

DIFFERS, INVENTED = "differs", "not in the picture"


@dataclass(frozen=True)
class Result:
    """One method's answer; `finish` is "" while it grows."""

    method: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    finish: str = ""
    error: str = ""


@dataclass(frozen=True)
class Compared:
    """What the page remembers of a comparison."""

    settings: Settings
    picture: Picture
    prompt: str
    results: tuple[Result, ...]


def compare(
    model: mmattn.VLM, picture: Picture | None, prompt: str, methods: Sequence[str], settings: Settings, stop: Event
) -> Iterator[Compared]:
    """The answers so far, again and again. A method that cannot be used says so in its place.

    Raises:
        MmattnError: no picture, no question, or fewer than two methods, or one that names a file.
    """
    shown, prompt = checked(picture, prompt)
    if len(methods) < 2:
        raise mmattn.MmattnError("There is nothing to compare", "Choose two methods at least.")
    results = [Result(harmless(one)) for one in methods]
    for number, method in enumerate(methods):
        if stop.is_set():
            return
        for result in _answer(model, shown, prompt, replace(settings, method=method), stop):
            results[number] = result
            yield Compared(settings, shown, prompt, tuple(results))


def _answer(model: mmattn.VLM, picture: Picture, prompt: str, settings: Settings, stop: Event) -> Iterator[Result]:
    begin, decode = time.perf_counter(), model.adapter.tokenizer.decode
    stream: Stream[list[mmattn.Generation]] = Stream(
        lambda on_token: model.generate(picture.image, prompt, on_token=on_token, **settings.arguments()), stop
    )
    try:
        for tokens in stream:
            seconds = time.perf_counter() - begin
            yield Result(settings.method, decode(tokens, skip_special_tokens=True).strip(), len(tokens), seconds)
    except mmattn.MmattnError as error:
        yield Result(settings.method, finish="refused", error=str(error))
        return
    seconds = time.perf_counter() - begin
    answer = stream.result[0] if stream.result else None
    text = answer.text if answer else decode(stream.tokens, skip_special_tokens=True).strip()
    finish = answer.finish_reason if answer else "stopped"
    yield Result(settings.method, text, len(stream.tokens), seconds, finish)


def marked(results: Sequence[Result], examples: Examples, picture: Picture) -> list[list[tuple[str, str | None]]]:
    """For each answer its pieces, with what is to be said of them; invented objects on examples alone."""
    done = [one.text if one.finish else "" for one in results]
    texts = [text for text in done if text]
    spans = iter(differing(texts))
    found = []
    for one, text in zip(results, done, strict=True):
        if text:
            found.append(pieces(text, next(spans), examples.mentions(picture, text)))
        else:
            found.append([(one.text or one.error, None)])
    return found


def pieces(text: str, differ: Sequence[tuple[int, int]], named: Sequence[Mention]) -> list[tuple[str, str | None]]:
    """`text` cut where a mark begins or ends; what is invented is marked as such, even where it differs."""
    labels: list[str | None] = [None] * len(text)
    for start, end in differ:
        labels[start:end] = [DIFFERS] * (end - start)
    for one in named:
        if not one.there:
            labels[one.start : one.end] = [INVENTED] * (one.end - one.start)
    cut = [0, *(at for at in range(1, len(text)) if labels[at] != labels[at - 1]), len(text)]
    return [(text[start:end], labels[start]) for start, end in itertools.pairwise(cut) if end > start]


def cost(method: str) -> dict[str, Any]:
    """What a method asks of the machine, from its card."""
    chosen = resolve(method)
    parts: tuple[Method, ...] = chosen.parts if isinstance(chosen, Combined) else (chosen,)
    extras = [one.card.extra_passes for one in parts if one.card.extra_passes != "none"]
    rows = 1 + sum(branch.decoded for branch in chosen.branches())
    return {"rows_per_step": rows, "extra_passes": "; ".join(extras) or "none"}


def told_of(result: Result, invented: int | None) -> str:
    """A line about one answer, as HTML."""
    if result.error:
        return "This method cannot be used here."
    if not result.finish:
        return "Answering ..." if result.tokens else ""
    spent = cost(result.method)
    each = result.seconds / max(result.tokens, 1) * 1000
    line = f"{result.tokens} tokens in {result.seconds:.2f} s ({each:.0f} ms each)"
    line += {"length": ", cut off", "stopped": ", stopped"}.get(result.finish, "")
    line += f"<br>{spent['rows_per_step']} row(s) a step, extra passes: {html.escape(spent['extra_passes'])}"
    if invented is not None:
        line += f"<br><b>{invented} invented</b>" if invented else "<br>nothing invented"
    return line
