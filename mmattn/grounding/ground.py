"""From a picture and queries to boxes and points: asks, chooses tokens, reads rows, makes maps. See `VLM.ground`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mmattn.adapters import Adapter, ImageLayout, Prepared, Sample
from mmattn.errors import MmattnError
from mmattn.grounding.locator import Cells, Locator, detail
from mmattn.grounding.reader import Job, Reader
from mmattn.grounding.regions import centre, find, normalised
from mmattn.grounding.result import Grounding
from mmattn.grounding.tokens import query_tokens, value_tokens

# Token ids of the model's answers to prompts about the picture, and their texts.
Ask = Callable[[Sequence[str]], Sequence[tuple[tuple[int, ...], str]]]


@dataclass(frozen=True)
class Question:
    """One query in tokens: `job` is None where no token speaks of it, and `reason` says why."""

    query: str
    prompt: str
    shown: ImageLayout
    job: Job | None
    source: str
    answer: str = ""
    reason: str = ""


def asking(generate: Callable[..., Sequence[Any]], picture: Image.Image, method: Locator, batch_size: int) -> Ask:
    """What gives a method the answers that it reads: greedy ones about `picture`, by a `VLM.generate`."""

    def ask(prompts: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
        answers = generate(picture, prompts, max_new_tokens=method.max_new_tokens, batch_size=batch_size)
        return [(answer.token_ids, answer.text) for answer in answers]

    return ask


def ground(
    adapter: Adapter, picture: Image.Image, queries: Sequence[str], method: Locator, batch_size: int, ask: Ask
) -> Iterator[Grounding]:
    """One `Grounding` per query about `picture`, in order; `method` must be bound to the model."""
    reader = Reader(adapter, picture, batch_size)
    asked = questions(adapter, picture, queries, method, ask)
    jobs = [one.job for one in asked if one.job]
    maps = method.maps(reader, jobs) if jobs else iter(())
    for question in asked:
        yield _grounding(question, next(maps) if question.job else None, picture.size, method, adapter)


def questions(
    adapter: Adapter, picture: Image.Image, queries: Sequence[str], method: Locator, ask: Ask
) -> list[Question]:
    """The queries in tokens, with the tokens whose rows are wanted; answers are generated where the method reads them.

    Raises:
        MmattnError: an empty query, or rows that the family does not have.
    """
    words = [query.strip() for query in queries]
    if not all(words):
        raise MmattnError("A query is empty", 'Name what to look for, such as "the dog".')
    prompts, starts = zip(*map(method.asked, words), strict=True)
    answers: Sequence[tuple[tuple[int, ...], str]] = [((), "")] * len(words)
    if method.tokens == "generated":
        answers = ask(prompts)
    samples = [Sample((picture,), prompt, ids or None) for prompt, (ids, _) in zip(prompts, answers, strict=True)]
    made = adapter.prepare(samples)
    return [
        _question(adapter, method, query, prompt, start, prepared, ids, text)
        for query, prompt, start, prepared, (ids, text) in zip(words, prompts, starts, made, answers, strict=True)
    ]


def _question(
    adapter: Adapter,
    method: Locator,
    query: str,
    prompt: str,
    start: int,
    prepared: Prepared,
    ids: tuple[int, ...],
    answer: str,
) -> Question:
    shown = prepared.layout.images[0]
    first = prepared.layout.prompt_length
    if method.tokens == "last":
        return Question(query, prompt, shown, Job(prepared, (first - 1,)), "last")
    value = [first + index for index in value_tokens(adapter.tokenizer, ids)]
    if value:
        return Question(query, prompt, shown, Job(prepared, tuple(value)), "generated", answer)
    own = query_tokens(prepared, prompt, query, start)
    if not own:
        return Question(query, prompt, shown, None, "query", answer, "The query's words were not found in the prompt.")
    try:
        adapter.rows(own, prepared)
    except MmattnError as error:
        if method.tokens == "query":
            raise MmattnError(error.message, 'With this model use tokens="last" or tokens="generated".') from error
        reason = f"The answer holds no value that can be read, and the prompt's tokens cannot be rows: {error.message}."
        return Question(query, prompt, shown, None, "query", answer, reason)
    return Question(query, prompt, shown, Job(prepared, tuple(own)), "query", answer)


def _grounding(
    question: Question, cells: Cells | None, size: tuple[int, int], method: Locator, adapter: Adapter
) -> Grounding:
    tokens: tuple[str, ...] = ()
    if question.job:
        ids = question.job.prepared.ids
        tokens = tuple(adapter.word(int(ids[position])) for position in question.job.positions)
    nothing = Grounding(
        query=question.query,
        heatmap=np.zeros(size[::-1], dtype=np.float32),
        reason=question.reason,
        prompt=question.prompt,
        answer=question.answer,
        source=question.source,
        tokens=tokens,
        method=method.settings(),
    )
    if cells is None:
        return nothing
    if not np.isfinite(cells).all():
        return replace(nothing, reason="The attention holds values that are not numbers.")
    view = detail(question.shown)
    level = normalised(cells, view, size)
    if not level.any():
        reason = "The chosen tokens pay the picture no attention, or no more than the general instruction does."
        return replace(nothing, reason=reason)
    found = find(level, view, size, method.threshold)
    return replace(
        nothing,
        heatmap=view.to_image(level, size, smooth=False),
        boxes=found.boxes,
        scores=found.scores,
        point=centre(found.boxes[0]),
        peak=found.peak,
    )
