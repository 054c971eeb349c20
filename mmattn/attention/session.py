"""Scoped access to the attention layers of one model: a reader, edits, and where the image tokens are.

A session is visible only in the thread (or task) that entered it, and only to the modules it names, so that two
models and two threads never meet. Leaving it, normally or through an exception, restores the model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from torch import nn
from transformers import PreTrainedModel

from mmattn.attention.capture import RowCapture
from mmattn.attention.edit import Columns, Edit

# "flash", "flex" and "sdpa" inside a name would change how transformers treats the function.
NAME = "mmattn"

_SESSIONS: ContextVar[tuple[Session, ...]] = ContextVar("mmattn_sessions", default=())
_SWITCHES: dict[int, _Switch] = {}
_LOCK = threading.Lock()


class Session:
    """The attention layers of `model`'s decoder, reached through `mmattn`'s attention function while entered.

    Args:
        model: a transformers model.
        layers: its decoder's attention modules, in order.
        config_key: name of the decoder's sub-configuration ("text_config"), or "" for a text-only model.
        capture: rows to read; None enters the attention function without asking anything of it.
        edits: changes of attention, in order.

    Attributes:
        columns: where the image tokens of the current call are; whoever calls the decoder keeps it up to date when
            there are edits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        config_key: str,
        capture: RowCapture | None = None,
        edits: Sequence[Edit] = (),
    ) -> None:
        self.capture = capture
        self.edits = tuple(edits)
        self.columns: Columns | None = None
        self.depth = len(layers)
        self._model = model
        self._config_key = config_key
        self._layer_of = {id(module): index for index, module in enumerate(layers)}
        self._token: Token[tuple[Session, ...]] | None = None

    def layer_of(self, module: nn.Module) -> int | None:
        return self._layer_of.get(id(module))

    def __enter__(self) -> Self:
        _Switch.acquire(self._model, self._config_key)
        self._token = _SESSIONS.set((*_SESSIONS.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _SESSIONS.reset(self._token)
        self._token = None
        _Switch.release(self._model)


def active(module: nn.Module) -> list[tuple[Session, int]]:
    """The sessions of this thread that know the layer which `module` is and ask something, with its index."""
    found = []
    for session in _SESSIONS.get():
        layer = session.layer_of(module) if session.capture is not None or session.edits else None
        if layer is not None:
            found.append((session, layer))
    return found


def entered(session: Session) -> bool:
    """Whether this thread is inside `session`."""
    return session in _SESSIONS.get()


class _Switch:
    """A model's attention implementation, switched while at least one session (of any thread) uses the model."""

    def __init__(self, model: PreTrainedModel, config_key: str) -> None:
        self.users = 0
        self._model = model
        self._key = config_key
        config = getattr(model.config, config_key) if config_key else model.config
        self._before = config._attn_implementation
        self.set(NAME)

    def set(self, name: str) -> None:
        # A dict leaves the vision tower and the top-level value alone.
        self._model.set_attn_implementation({self._key: name})

    @classmethod
    def acquire(cls, model: PreTrainedModel, config_key: str) -> None:
        with _LOCK:
            switch = _SWITCHES.get(id(model)) or cls(model, config_key)
            switch.users += 1
            _SWITCHES[id(model)] = switch

    @classmethod
    def release(cls, model: PreTrainedModel) -> None:
        with _LOCK:
            switch = _SWITCHES[id(model)]
            switch.users -= 1
            if not switch.users:
                del _SWITCHES[id(model)]
                switch.set(switch._before)
