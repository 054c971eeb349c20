"""The decoder's work on whole prompts, in few launches: through its modules, a short prompt waits for Python.

Shapes: B rows of T tokens, M = B T, S keys, H query heads, G key heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmattn.adapters import Added, Embedded, SharedCache
from mmattn.attention import Session, attention_forward
from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.parts import DecoderParts, LayerParts
from mmattn.decoding.fast.reading import LastRows
from mmattn.decoding.fast.rewriting import Rewriting
from mmattn.decoding.fast.rows import EditedRows

TOKENS = 16  # that one program rotates


def prefill(
    parts: DecoderParts,
    attention: Sequence[nn.Module],
    batch: Embedded,
    added: Added,
    cache: SharedCache,
    session: Session,
    rewriting: Rewriting | None = None,
) -> torch.Tensor:
    """Hidden states (B, hidden) of the last tokens; `cache` grows by all T.

    Args:
        attention: the decoder's attention modules, by which the attention function knows what `session` asks of a
            layer, where an `EditedRows` does not do that.
        added: what joins the stream after a layer.
        rewriting: the edits of `session`, if it has any, for whatever can be done without its attention function.
    """
    rows, width, hidden = batch.embeds.shape
    count = rows * width
    stream = batch.embeds.reshape(count, hidden).clone()
    turns = [one.reshape(count, parts.dim).contiguous() for one in parts.rotary(batch.embeds, batch.positions)]
    places = torch.arange(count, dtype=torch.int32, device=stream.device)
    begin = torch.full((), cache.get_seq_length(), dtype=torch.int32, device=stream.device)
    qkv = stream.new_empty(count, (parts.heads + 2 * parts.groups) * parts.dim)
    query = qkv.view(rows, width, -1, parts.dim)[:, :, : parts.heads].transpose(1, 2)
    keys, values = cache.extend(query.new_empty(rows, parts.groups, width, parts.dim))
    total = cache.get_seq_length()
    mask = _mask(batch.mask, width)
    reader = LastRows.of(parts, session, batch.mask, keys)
    asked, session.capture = session.capture, None if reader else session.capture
    editor = EditedRows.of(parts, session, rewriting, batch.mask, width) if rewriting else None
    for index, (layer, module) in enumerate(zip(parts.layers, attention, strict=True)):
        session.enters(index, stream.view(rows, width, hidden))
        _project(layer, functional.rms_norm(stream, (hidden,), layer.attention_gain, parts.eps), qkv)
        normed, last = layer.query_gain is not None, reader.last(index) if reader else None
        kernels.rotate_and_store[(triton.cdiv(count, TOKENS), parts.heads + 2 * parts.groups)](
            qkv, *turns, layer.query_gain if normed else places, layer.key_gain if normed else places, keys[index],
            values[index], places if last is None else last, places, begin, count, width, H=parts.heads,
            G=parts.groups, D=parts.dim, C=keys.shape[3], EPS=parts.eps, QK_NORM=normed, LAST=last is not None,
            BLOCK_D=triton.next_power_of_2(parts.dim // 2), BLOCK_M=TOKENS,
        )  # fmt: skip
        key, value = keys[index, :, :, :total], values[index, :, :, :total]
        attend = sdpa_attention_forward if editor else attention_forward
        mixed, _ = attend(module, query, key, value, mask, scaling=parts.scale)
        if editor:
            editor.apply(index, qkv, keys[index], values[index], stream.view(rows, width, hidden), mixed)
        stream.addmm_(mixed.reshape(count, -1), layer.output.T)
        ready = functional.rms_norm(stream, (hidden,), layer.mlp_gain, parts.eps)
        inner = functional.silu(functional.linear(ready, layer.gate), inplace=True)
        stream.addmm_(inner.mul_(functional.linear(ready, layer.up)), layer.down.T)
        if index in added:
            here, more = added[index]
            stream.index_add_(0, here, more.to(stream))
    if reader:
        reader.read()
    if editor:
        editor.finish()
    session.capture = asked
    return functional.rms_norm(stream.view(rows, width, hidden)[:, -1], (hidden,), parts.final_gain, parts.eps)


def _project(layer: LayerParts, ready: torch.Tensor, qkv: torch.Tensor) -> None:
    """Query, key and value of `ready` (M, hidden), side by side in `qkv`."""
    begin = 0
    for one in (layer.query, layer.key, layer.value):
        out, bias = qkv[:, begin : begin + one.out_features], one.bias
        torch.mm(ready, one.weight.T, out=out) if bias is None else torch.addmm(bias, ready, one.weight.T, out=out)
        begin += one.out_features


def _mask(mask: torch.Tensor, width: int) -> torch.Tensor | None:
    """What the last `width` of the keys `mask` (B, S) may look at: (B, 1, T, S) bool, or None for all before them."""
    keys = mask.shape[1]
    if keys == width and bool(mask.all()):
        return None
    at = torch.arange(keys, device=mask.device)
    return (at <= at[keys - width :, None]) & mask.bool()[:, None, None]
