"""What the Ask tab shows of an answer: plain functions of what was kept."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

from PIL import Image

from mmattn.demo.drawing import head_maps, word_map
from mmattn.demo.examples import Examples
from mmattn.demo.state import ONE_HEAD, Asked, View, Word

CHOSEN = "shown on the picture"
HINT = "Click a word to see where the model looked."

Spans = list[tuple[str, str | None]]


def spans(words: tuple[Word, ...], chosen: int | None) -> Spans:
    """Words as `gr.HighlightedText` takes them."""
    return [(word.text, CHOSEN if number == chosen else None) for number, word in enumerate(words)]


def both(asked: Asked, view: View) -> tuple[Spans, Spans]:
    """Answer and prompt, the chosen word marked."""
    return (
        spans(asked.answer, view.word if view.where == "answer" else None),
        spans(asked.prompt_words, view.word if view.where == "prompt" else None),
    )


def first_word(asked: Asked, view: View) -> View:
    """The view of the last word of the answer: often the thing that was asked for."""
    return replace(view, where="answer", word=max(len(asked.answer) - 1, 0))


def rows_of(asked: Asked, view: View) -> tuple[int, ...]:
    """Rows of the chosen word; none where nothing was read for it."""
    words = asked.words(view.where)
    chosen = words[view.word].rows if 0 <= view.word < len(words) else ()
    return chosen if asked.rows(view.where) is not None else ()


def drawn(asked: Asked | None, view: View) -> tuple[Any, str]:
    """The map of the chosen word, and a line about it, as HTML."""
    if asked is None:
        return None, HINT
    rows, read = rows_of(asked, view), asked.rows(view.where)
    if read is None or not rows:
        return asked.picture.image, "Nothing was read for this word."
    share = float(read.weights[:, :, list(rows)].sum(-1).mean())
    x, y = read.peak(rows=list(rows), **view.chosen())
    place = f"layer {view.layer}, head {view.head}" if view.how == ONE_HEAD else view.how
    word = html.escape(asked.words(view.where)[view.word].text.strip(" \n\t.,;:!?"))
    line = (
        f"<b>{word}</b> ({place}): strongest at x = {x:.0f}, y = {y:.0f}. "
        f"Over all layers and heads it spends {share:.0%} of its attention on the picture."
    )
    return word_map(asked.picture.image, read, rows, view), line


def gallery(asked: Asked | None, view: View) -> list[tuple[Image.Image, str]]:
    """A small map of each head of the chosen layer."""
    if asked is None:
        return []
    rows, read = rows_of(asked, view), asked.rows(view.where)
    return head_maps(asked.picture.image, read, rows, view) if read is not None and rows else []


def told_of(asked: Asked, examples: Examples) -> str:
    """A line about the answer, as HTML; on an example with what the answer invents."""
    ends = {"length": ", cut off at the length limit", "stopped": ", stopped"}.get(asked.finish, "")
    count = len(asked.token_ids)
    tokens = "1 token" if count == 1 else f"{count} tokens"
    line = f"{tokens} in {asked.seconds:.2f} s ({asked.seconds / max(count, 1) * 1000:.0f} ms each){ends}."
    invented = dict.fromkeys(one.object for one in examples.mentions(asked.picture, asked.text) if not one.there)
    return f"{line} <b>Not in the picture: {', '.join(invented)}.</b>" if invented else line
