"""Asking: the answer as it grows, then everything that its words' maps need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from threading import Event

import torch

import mmattn
from mmattn.demo.controls import harmless
from mmattn.demo.state import Asked, Picture, Settings
from mmattn.demo.streaming import Stream
from mmattn.demo.words import answer_words, prompt_words
from mmattn.grounding import Attention


def ask(
    model: mmattn.VLM, picture: Picture | None, prompt: str, settings: Settings, stop: Event
) -> Iterator[str | Asked]:
    """The text so far, again and again, and at last what is known of the answer.

    Raises:
        MmattnError: no picture, no question, or a setting out of range.
    """
    shown, prompt = checked(picture, prompt)
    harmless(settings.method)
    begin = time.perf_counter()
    stream: Stream[list[mmattn.Generation]] = Stream(
        lambda on_token: model.generate(
            shown.image, prompt, capture=mmattn.Capture(), on_token=on_token, **settings.arguments()
        ),
        stop,
    )
    tokenizer = model.adapter.tokenizer
    for tokens in stream:
        yield tokenizer.decode(tokens, skip_special_tokens=True)
    seconds = time.perf_counter() - begin
    prompt_rows = _prompt_rows(model, shown, prompt, settings)
    if stream.result:
        answer = stream.result[0]
        ids, finish, rows = answer.token_ids, str(answer.finish_reason), answer.attention
    else:
        ids, finish = tuple(stream.tokens), "stopped"
        rows = _rows_of_part(model, shown, prompt, settings, ids, prompt_rows)
    yield Asked(
        settings=settings,
        picture=shown,
        prompt=prompt,
        text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
        token_ids=ids,
        finish=finish,
        seconds=seconds,
        answer=answer_words(tokenizer, ids),
        prompt_words=prompt_words(model, shown, prompt, prompt_rows),
        answer_rows=rows if ids else None,
        prompt_rows=prompt_rows,
    )


def checked(picture: Picture | None, prompt: str) -> tuple[Picture, str]:
    """Both, if they are there.

    Raises:
        MmattnError: one is missing.
    """
    if picture is None:
        raise mmattn.MmattnError("There is no picture", "Upload one, or click an example.")
    if not prompt.strip():
        raise mmattn.MmattnError("There is no question", "Type one, such as: Describe the image.")
    return picture, prompt.strip()


def _prompt_rows(model: mmattn.VLM, picture: Picture, prompt: str, settings: Settings) -> Attention | None:
    """Rows of the prompt's tokens, as the method edits them where one forward can; None in encoder-decoders."""
    for method in (settings.method, "greedy"):
        try:
            return model.attend(picture.image, prompt, rows="prompt", method=method)
        except mmattn.MmattnError:
            continue
    return None


def _rows_of_part(
    model: mmattn.VLM,
    picture: Picture,
    prompt: str,
    settings: Settings,
    ids: tuple[int, ...],
    prompt_rows: Attention | None,
) -> Attention | None:
    """The rows that decided the tokens of an answer that was stopped: the prompt's last one, then its own."""
    if prompt_rows is None or not ids:
        return None
    try:
        read = model.attend(picture.image, prompt, ids, rows="answer", method=settings.method)
    except mmattn.MmattnError:  # the method is more than one forward can hold
        return None
    weights = torch.cat([prompt_rows.weights[:, :, -1:], read.weights[:, :, :-1]], dim=2)
    positions = (prompt_rows.positions[-1], *read.positions[:-1])
    return replace(read, held=weights, positions=positions, produced=read.tokens)
