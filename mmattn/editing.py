"""Editing attention inside plain transformers calls: `with mmattn.edit(model, Boost(3)): model.generate(...)`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmattn.adapters import Adapter, adapter_for
from mmattn.attention import Columns, Session
from mmattn.attention.compiling import uncompiled
from mmattn.attention.session import entered
from mmattn.custom import custom_generate, decoding
from mmattn.decoding.method import Combined, Method
from mmattn.decoding.registry import resolve
from mmattn.errors import MmattnError


@contextmanager
def edit(
    model: PreTrainedModel, *methods: str | Method, processor: Any = None, emphasise: Any = None, seed: int = 0
) -> Iterator[None]:
    """Within the context, `model` attends as the methods say: in its own `generate`, `forward`, anything.

    Args:
        model: a transformers model of a supported family; restored on leaving, also through an exception.
        methods: names or instances that edit attention, applied in order. Methods that need further branches
            cannot work inside a single plain forward.
        processor: the model's. With it, every method but those that repaint pictures is welcome, also one that steers
            to words: `model.generate` then decodes as `mmattn.custom_generate` does, and `model.forward` stays plain.
        emphasise: with a processor, as for `VLM.generate`.
        seed: with a processor, of the random draws.

    Other threads do not see the edits. Prompts must come as `input_ids`, which tell where the image tokens are.
    Compiled code (a static cache on a GPU, `torch.compile`) runs uncompiled meanwhile, in all threads.

    Raises:
        MmattnError: unsupported family, unknown method, or one that is more than an edit.
    """
    chosen = [resolve(one) for one in methods]
    if processor is not None:
        method = Combined(tuple(chosen)) if len(chosen) > 1 else (chosen or [Method()])[0]
        with decoding(model, custom_generate(method, processor, emphasise=emphasise, seed=seed)):
            yield
        return
    if emphasise is not None:
        raise MmattnError("Token ids do not tell what is emphasised", "Pass processor=..., too.")
    for one in chosen:
        if one.rules or one.branches() or one.repaints:
            raise MmattnError(
                f"{one.label} is more than an edit of attention, which is all that a plain forward can take",
                "Pass processor=... to have it in `generate`, or use mmattn.wrap(model, processor).generate(...).",
            )
    adapter = adapter_for(model, None)
    session = adapter.session(edits=[change for one in chosen for change in one.edits()])
    with session, uncompiled(), _tracking(adapter, session):
        yield


@contextmanager
def _tracking(adapter: Adapter, session: Session) -> Iterator[None]:
    """Keep `session.columns` true for every call of the decoder, by watching its token ids go by."""
    tracker = _Tracker(adapter, session)
    embeddings = adapter.model.get_input_embeddings()
    handles = [
        embeddings.register_forward_pre_hook(tracker.on_tokens),
        adapter.decoder.register_forward_pre_hook(tracker.on_decoder, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Tracker:
    def __init__(self, adapter: Adapter, session: Session) -> None:
        self._adapter = adapter
        self._session = session
        self._recent: deque[torch.Tensor] = deque(maxlen=2)  # an encoder-decoder embeds twice before its decoder runs
        self._source: torch.Tensor | None = None

    def on_tokens(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Families embed the prompt in various places, but always its ids, placeholders included."""
        if entered(self._session):
            self._recent.append(inputs[0])

    def on_decoder(self, _module: nn.Module, _inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        if not entered(self._session):
            return
        if given.get("encoder_hidden_states") is not None:
            self._on_encoder_decoder(given)
            return
        ids = given["input_ids"] if given.get("input_ids") is not None else self._ids_of(given["inputs_embeds"])
        image = ids == self._adapter.image_token_id
        cache = given.get("cache", given.get("past_key_values"))  # its name before transformers 5.24
        past = int(cache.get_seq_length()) if cache is not None else 0
        if not past:
            self._session.restart()
        elif ids.shape[1] > 1 and bool(image.any()) and any(edit.whole for edit in self._session.edits):
            raise MmattnError("This edit needs the whole prompt in one call", "Do not prefill in portions.")
        if past:
            # A single placeholder that the model itself wrote is no picture.
            image = image & (ids.shape[1] > 1)
            image = torch.cat([self._before(past, len(image)), image], dim=1)
        self._session.columns = Columns.of_sequence(image, ids.shape[1])

    def _on_encoder_decoder(self, given: dict[str, Any]) -> None:
        """The decoder looks at the encoder's tokens, the same ones at every step."""
        new = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
        source, known = given["encoder_hidden_states"], self._session.columns
        if known is not None and source is self._source:
            image = known.image
        else:
            image, self._source = self._ids_of(source) == self._adapter.image_token_id, source
            self._session.restart()
        self._session.columns = Columns.of_encoder(image, new.shape[1])

    def _ids_of(self, embeds: torch.Tensor) -> torch.Tensor:
        """The ids that became `embeds`: as many, or each row repeated (beams). They are used once."""
        for ids in self._recent:
            if ids.ndim == 2 and ids.shape[1] == embeds.shape[1] and embeds.shape[0] % ids.shape[0] == 0:
                self._recent.clear()
                return ids.repeat_interleave(embeds.shape[0] // ids.shape[0], dim=0)
        raise MmattnError("The edit cannot tell where the image tokens are", "Pass input_ids, not inputs_embeds.")

    def _before(self, past: int, batch: int) -> torch.Tensor:
        """Image tokens (B, past) among the keys that the cache holds."""
        known = self._session.columns
        if known is None or known.image.shape[0] != batch or known.image.shape[1] < past:
            raise MmattnError(
                "The edit did not see the beginning of this generation", "Enter mmattn.edit() before the prefill."
            )
        return known.image[:, :past]
