"""Scoped access to the attention layers of one model: a reader, edits, and where the image tokens are.

A session is visible only in the thread (or task) that entered it, and only to the modules it names, so that two
models and two threads never meet. Leaving it, normally or through an exception, restores the model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar, Token
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mmattn.attention.capture import RowCapture
from mmattn.attention.edit import Columns, Edit, Site

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
        blocks: the decoder's layers, in order; only for edits that ask for hidden states.
        branches: names of the K branches of each sample, whose rows follow each other in the batch.

    Attributes:
        columns: where the image tokens of the current call are; whoever calls the decoder keeps it up to date when
            there are edits.
        memory: what edits keep from the prefill on, by edit and layer. Whoever begins another prefill calls `restart`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        config_key: str,
        capture: RowCapture | None = None,
        edits: Sequence[Edit] = (),
        blocks: Sequence[nn.Module] = (),
        branches: Sequence[str] = ("plain",),
    ) -> None:
        self.capture = capture
        self.edits = tuple(edits)
        self.branches = tuple(branches)
        self.memory: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        self.columns: Columns | None = None
        self.depth = len(layers)
        self._model = model
        self._config_key = config_key
        self._layer_of = {id(module): index for index, module in enumerate(layers)}
        self._token: Token[tuple[Session, ...]] | None = None
        self._blocks = tuple(blocks) if any(edit.states for edit in self.edits) else ()
        self._states: dict[int, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def restart(self) -> None:
        """Forget what edits kept: a prefill begins."""
        self.memory.clear()

    def keep(self, rows: torch.Tensor, branches: Sequence[str]) -> None:
        """Go on with these rows of the batch, those of `branches`."""
        self.branches = tuple(branches)
        for kept in self.memory.values():
            kept.update({name: value.index_select(0, rows.to(value.device)) for name, value in kept.items()})

    def jobs(self, layer: int, keys: int) -> list[tuple[Edit, Site, Columns]]:
        """The edits at work in `layer`, in a call with `keys` keys."""
        if self.columns is None:
            raise RuntimeError("an edit needs to know where the image tokens are")
        image, said, marked = self.columns.spread(keys)
        known = self.columns.image.shape[1]
        found = []
        for number, edit in enumerate(self.edits):
            if edit.wants(layer, self.depth):
                memory = self.memory.setdefault((number, layer), {})
                states = self._states.get(layer) if edit.states else None
                site = Site(layer, self.depth, image, said, states, memory, known, self.branches, marked)
                found.append((edit, site, self.columns))
        return found

    def enters(self, layer: int, states: torch.Tensor) -> None:
        """Tell what (B, T, D) enters `layer`, where no module is called that could be watched."""
        if self._blocks:
            self._states = {layer: states}

    def layer_of(self, module: nn.Module) -> int | None:
        return self._layer_of.get(id(module))

    def __enter__(self) -> Self:
        _Switch.acquire(self._model, self._config_key)
        self._token = _SESSIONS.set((*_SESSIONS.get(), self))
        for layer, block in enumerate(self._blocks):
            hook = partial(self._on_block, layer)
            self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _SESSIONS.reset(self._token)
        self._token = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._states.clear()
        _Switch.release(self._model)

    def _on_block(self, layer: int, _block: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Keep the hidden states that enter `layer`, one layer's at a time."""
        if not entered(self):
            return
        cross = self.columns is not None and self.columns.cross
        # A T5 block takes its encoder's output as the fourth argument.
        self.enters(layer, inputs[3] if cross else inputs[0] if inputs else given["hidden_states"])


def own(hook: Any) -> bool:
    """Whether a module's forward pre-hook is that of a session, which changes nothing."""
    return isinstance(hook, partial) and getattr(hook.func, "__func__", None) is Session._on_block


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
