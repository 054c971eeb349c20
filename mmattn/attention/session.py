"""Scoped access to the attention layers of one model: a reader, edits, and where the image tokens are.

A session is visible only in the thread (or task) that entered it, and only to the modules it names, so that two
models and two threads never meet. Leaving it, normally or through an exception, restores the model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from contextvars import ContextVar, Token
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from mmattn.attention.capture import RowCapture
from mmattn.attention.compiling import uncompiled
from mmattn.attention.edit import Columns, Edit, Site, View
from mmattn.attention.rows import Call

# "flash", "flex" and "sdpa" inside a name would change how transformers treats the function.
NAME = "mmattn"

_SESSIONS: ContextVar[tuple[Session, ...]] = ContextVar("mmattn_sessions", default=())
_SWITCHES: dict[int, _Switch] = {}
# The configurations that a model's decoder goes by, by the key that was asked for.
_REACHED: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, list[Any]]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


class Session:
    """The attention layers of `model`'s decoder, reached through `mmattn`'s attention function while entered.

    Args:
        model: a transformers model.
        layers: its decoder's attention modules, in order.
        config_key: name of the decoder's sub-configuration ("text_config"), or "" for a text-only model.
        capture: rows to read; None enters the attention function without asking anything of it.
        edits: changes of attention, in order.
        blocks: the decoder's layers, in order; only for edits that ask for hidden states, and for `exits`.
        branches: names of the K branches of each sample, whose rows follow each other in the batch.
        exits: decoder layers in front of which the last token's hidden states are kept.
        watch: whether what enters the layers is seen on the modules from the beginning; else whoever calls them says
            `watch`, and whoever does without them says `enters`.

    Attributes:
        columns: where the image tokens of the current call are; whoever calls the decoder keeps it up to date when
            there are edits.
        memory: what edits keep from the prefill on, by `Edit.place`. Whoever begins another prefill calls `restart`.
        left: hidden states (B, D) of the last token of the call, by the layer of `exits` that they enter.
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
        exits: Sequence[int] = (),
        *,
        watch: bool = True,
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
        watched = range(len(blocks)) if any(edit.states for edit in self.edits) else exits
        self._blocks = {layer: blocks[layer] for layer in watched}
        self.exits = frozenset(exits)
        self.left: dict[int, torch.Tensor] = {}
        self._states: dict[int, torch.Tensor] = {}
        self._watching = watch
        self._hooks = ExitStack()

    def restart(self) -> None:
        """Forget what edits kept: a prefill begins."""
        self.memory.clear()

    def keep(self, rows: torch.Tensor, branches: Sequence[str]) -> None:
        """Go on with these rows of the batch, those of `branches`."""
        self.branches = tuple(branches)
        for kept in self.memory.values():
            kept.update({name: value.index_select(0, rows.to(value.device)) for name, value in kept.items()})

    def jobs(self, layer: int, call: Call) -> list[tuple[Edit, Site, Columns]]:
        """The edits at work in `layer`, in this call."""
        if self.columns is None:
            raise RuntimeError("an edit needs to know where the image tokens are")
        length = call.query.shape[2]
        image, said, marked = self.columns.spread(call.key.shape[2])
        known = self.columns.image.shape[1]
        found = []
        for number, edit in enumerate(self.edits):
            if edit.wants(layer, self.depth):
                memory = self.memory.setdefault(edit.place(number, layer), {})
                states = self._states.get(layer) if edit.states else None
                view = View(call, self.columns) if edit.views and length > 1 else None
                site = Site(
                    layer, self.depth, image, said, states, memory, known, self.branches, view=view, marked=marked
                )
                found.append((edit, site, self.columns.everywhere(length) if edit.every_row else self.columns))
        return found

    def enters(self, layer: int, states: torch.Tensor, source: torch.Tensor | None = None) -> None:
        """Tell what (B, T, D) enters `layer`, where no module is called that could be watched.

        Kept are one layer's states, or the encoder's output `source` in their place, and the last token's at all exits.
        """
        if layer in self.exits:
            self.left[layer] = states[:, -1].clone()
        if self._blocks:
            self._states = {layer: states if source is None else source}

    def layer_of(self, module: nn.Module) -> int | None:
        return self._layer_of.get(id(module))

    def __enter__(self) -> Self:
        _Switch.acquire(self._model, self._config_key)
        self._token = _SESSIONS.set((*_SESSIONS.get(), self))
        if self._watching:
            self.watch()
        return self

    def watch(self) -> None:
        """See on the modules what enters the layers, until the session is left."""
        if self._blocks:
            self._hooks.enter_context(uncompiled())
        for layer, block in self._blocks.items():
            hook = partial(self._on_block, layer)
            self._hooks.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _SESSIONS.reset(self._token)
        self._token = None
        self._hooks.close()
        self._states.clear()
        self.left.clear()
        _Switch.release(self._model)

    def _on_block(self, layer: int, _block: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        if not entered(self):
            return
        cross = self.columns is not None and self.columns.cross
        # A T5 block takes its encoder's output as the fourth argument.
        self.enters(layer, inputs[0] if inputs else given["hidden_states"], inputs[3] if cross else None)


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
        configs = _REACHED.setdefault(self._model, {}).get(self._key)
        mine = getattr(self._model.config, self._key) if self._key else self._model.config
        if not configs or all(one is not mine for one in configs):  # the first time, or the model has another by now
            every = {id(one.config): one.config for one in self._model.modules() if isinstance(one, PreTrainedModel)}
            before = {key: one._attn_implementation for key, one in every.items()}
            # A dict leaves the vision tower and the top-level value alone.
            self._model.set_attn_implementation({self._key: name})
            changed = [one for key, one in every.items() if one._attn_implementation != before[key]]
            _REACHED[self._model][self._key] = changed
            return
        # What that came down to, without another walk over all modules: a millisecond for each answer.
        for config in configs:
            config._attn_implementation_internal = name
        if any(config._attn_implementation != name for config in configs):
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
