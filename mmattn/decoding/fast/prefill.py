"""The decoder's work on whole prompts, in few launches: through its modules, a short prompt waits for Python.

Shapes: B rows of T tokens, M = B T, S keys, C slots of the cache, L layers, H query heads, G key heads, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmattn.adapters import Added, Embedded, SharedCache
from mmattn.attention import Session, attention_forward
from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.asked import Asked
from mmattn.decoding.fast.parts import DecoderParts, LayerParts
from mmattn.decoding.fast.reading import LastRows
from mmattn.decoding.fast.rewriting import Rewriting
from mmattn.decoding.fast.rows import EditedRows

TOKENS = 16  # that one program rotates


class Prompts:
    """A prefill that is prepared: where `complete`, `run` hears nothing more from the host, so that it can be captured.

    Attributes:
        reads: whether the last rows that are asked for are read here.
    """

    def __init__(
        self,
        parts: DecoderParts,
        attention: Sequence[nn.Module],
        batch: Embedded,
        buffers: tuple[torch.Tensor, torch.Tensor],
        asked: Asked,
        rewriting: Rewriting | None,
        *,
        end: int,
        mask: torch.Tensor | None = None,
        added: Added | None = None,
    ) -> None:
        """`buffers`: keys and values (L, B, G, C, D), whose first S - T slots are filled.

        Args:
            attention: the decoder's attention modules, by which the attention function knows what a session asks of a
                layer, where `complete` is not all that is asked.
            rewriting: the edits, if there are any, for whatever can be done without the attention function.
            end: which of the T tokens is the last one of the prompts.
            mask: which of the keys the tokens may look at, (B, 1, T, S) bool; None for all before them.
            added: what joins the stream after a layer.
        """
        self._parts, self._attention, self._mask, self._added = parts, attention, mask, added or {}
        rows, width, hidden = self._shape = batch.embeds.shape
        count, self._total, device = rows * width, batch.mask.shape[1], batch.embeds.device
        self._keys, self._values = buffers
        self._embeds = batch.embeds.reshape(count, hidden)
        turns = parts.rotary(batch.embeds, batch.positions)
        self._turns = [one.reshape(count, parts.dim).contiguous() for one in turns]
        self._places = torch.arange(count, dtype=torch.int32, device=device)
        self._ends = torch.arange(end, count, width, device=device)
        self._begin = torch.full((), self._total - width, dtype=torch.int32, device=device)
        self._reader = LastRows.of(parts, asked, batch.mask, self._keys)
        self._editor = EditedRows.of(parts, asked, rewriting, batch.mask, width, end) if rewriting else None
        self.reads = self._reader is not None
        self._forward = sdpa_attention_forward if complete(asked, rewriting) else attention_forward

    def inputs(self) -> list[torch.Tensor]:
        """What is of the prompts at hand: all else is the same for others of this shape that ask for the same."""
        more = [one.inputs() for one in (self._reader, self._editor) if one is not None]
        return [self._embeds, *self._turns, self._ends, *(one for some in more for one in some)]

    def run(self, enters: Callable[[int, torch.Tensor], None] | None = None) -> torch.Tensor:
        """Hidden states (B, hidden) of the last tokens; `enters` hears what (B, T, hidden) enters each layer."""
        parts, stream = self._parts, self._embeds.clone()
        qkv = stream.new_empty(len(stream), (parts.heads + 2 * parts.groups) * parts.dim)
        for index, layer in enumerate(parts.layers):
            states = stream.view(self._shape)
            if enters is not None:
                enters(index, states)
            mixed = self._attend(index, qkv, states)
            stream.addmm_(mixed.reshape(len(stream), -1), layer.output.T)
            ready = functional.rms_norm(stream, stream.shape[1:], layer.mlp_gain, parts.eps)
            inner = functional.silu(functional.linear(ready, layer.gate), inplace=True)
            stream.addmm_(inner.mul_(functional.linear(ready, layer.up)), layer.down.T)
            if index in self._added:
                here, more = self._added[index]
                stream.index_add_(0, here, more.to(stream))
        if self._reader:
            self._reader.read()
        if self._editor:
            self._editor.finish()
        return functional.rms_norm(stream[self._ends], stream.shape[1:], parts.final_gain, parts.eps)

    def _attend(self, index: int, qkv: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """What a layer's heads make of `states` (B, T, hidden): (B, T, H, D). `qkv` (M, (H + 2 G) D) is filled."""
        parts, layer = self._parts, self._parts.layers[index]
        rows, width, hidden = self._shape
        stream, places = states.view(-1, hidden), self._places
        _project(layer, functional.rms_norm(stream, (hidden,), layer.attention_gain, parts.eps), qkv)
        normed, last = layer.query_gain is not None, self._reader.last(index) if self._reader else None
        keys, values = self._keys[index], self._values[index]
        kernels.rotate_and_store[(triton.cdiv(len(qkv), TOKENS), parts.heads + 2 * parts.groups)](
            qkv, *self._turns, layer.query_gain if normed else places, layer.key_gain if normed else places, keys,
            values, places if last is None else last, self._ends, places, self._begin, len(qkv), width, H=parts.heads,
            G=parts.groups, D=parts.dim, C=keys.shape[2], EPS=parts.eps, QK_NORM=normed, LAST=last is not None,
            BLOCK_D=triton.next_power_of_2(parts.dim // 2), BLOCK_M=TOKENS,
        )  # fmt: skip
        query = qkv.view(rows, width, -1, parts.dim)[:, :, : parts.heads].transpose(1, 2)
        key, value = keys[:, :, : self._total], values[:, :, : self._total]
        mixed: torch.Tensor
        mixed, _ = self._forward(self._attention[index], query, key, value, self._mask, scaling=parts.scale)
        if self._editor:
            self._editor.apply(index, qkv, keys, values, states, mixed)
        return mixed


def complete(asked: Asked, rewriting: Rewriting | None) -> bool:
    """Whether `Prompts` does all that is asked for, and leaves nothing to the attention function."""
    if rewriting is not None and EditedRows.can(asked, rewriting):
        return True
    return not asked.edits and (asked.capture is None or LastRows.can(asked))


def prefill(
    parts: DecoderParts,
    attention: Sequence[nn.Module],
    batch: Embedded,
    added: Added,
    cache: SharedCache,
    session: Session,
    rewriting: Rewriting | None = None,
    *,
    whole: bool,
) -> torch.Tensor:
    """Hidden states (B, hidden) of the last tokens; `cache` grows by all T. For the arguments, see `Prompts`.

    `whole` says that each token may look at all before it.
    """
    rows, width, _ = batch.embeds.shape
    buffers = cache.extend(batch.embeds.new_empty(rows, parts.groups, width, parts.dim))
    mask = None if whole else _mask(batch.mask, width)
    prompts = Prompts(
        parts, attention, batch, buffers, Asked.of(session), rewriting, end=width - 1, mask=mask, added=added
    )  # fmt: skip
    capture, session.capture = session.capture, None if prompts.reads else session.capture
    hidden = prompts.run(session.enters)
    session.capture = capture
    return hidden


def _project(layer: LayerParts, ready: torch.Tensor, qkv: torch.Tensor) -> None:
    """Query, key and value of `ready` (M, hidden), side by side in `qkv`."""
    begin = 0
    for one in (layer.query, layer.key, layer.value):
        out, bias = qkv[:, begin : begin + one.out_features], one.bias
        torch.mm(ready, one.weight.T, out=out) if bias is None else torch.addmm(bias, ready, one.weight.T, out=out)
        begin += one.out_features


def _mask(mask: torch.Tensor, width: int) -> torch.Tensor:
    """What the last `width` of the keys `mask` (B, S) may look at: (B, 1, T, S) bool."""
    keys = mask.shape[1]
    at = torch.arange(keys, device=mask.device)
    return (at <= at[keys - width :, None]) & mask.bool()[:, None, None]
