"""What the fast step needs of a decoder: its weights, by reference, if the decoder is built as the step computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmattn.adapters import Adapter
from mmattn.attention import own

# Pre-norm layers with rotary embedding, SwiGLU and full attention; Qwen2 adds biases, Qwen3 norms of query and key.
LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3DecoderLayer",
    "Qwen3VLTextDecoderLayer",
)


class NotFastError(Exception):
    """The decoder is not one that the fast step knows; the message says why."""


@dataclass(frozen=True)
class LayerParts:
    """The weights of one layer: (N, K) matrices as in `nn.Linear`, biases or None."""

    attention_gain: torch.Tensor
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_gain: torch.Tensor | None
    key_gain: torch.Tensor | None
    output: torch.Tensor
    mlp_gain: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class DecoderParts:
    """A decoder taken apart; nothing is copied, so changed weights count at once.

    Attributes:
        embedding: (V, hidden). final_gain: (hidden,). head: (V, hidden).
        heads, groups, dim: query heads, key heads, features of a head.
    """

    layers: tuple[LayerParts, ...]
    embedding: torch.Tensor
    final_gain: torch.Tensor
    head: torch.Tensor
    rotary: nn.Module
    heads: int
    groups: int
    dim: int
    hidden: int
    inner: int
    eps: float
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def pointers(self) -> tuple[int, ...]:
        """Where the weights lie; a captured graph is right only as long as they stay there."""
        found = [self.embedding, self.final_gain, self.head]
        for one in self.layers:
            three = (one.query, one.key, one.value)
            found += [one.attention_gain, one.mlp_gain, one.output, one.gate, one.up, one.down]
            found += [each.weight for each in three] + [each.bias for each in three if each.bias is not None]
            found += [gain for gain in (one.query_gain, one.key_gain) if gain is not None]
        return tuple(one.data_ptr() for one in found)


def take_apart(adapter: Adapter) -> DecoderParts:
    """The parts of the adapter's decoder.

    Raises:
        NotFastError: unknown layers, changed or hooked modules, quantised weights, or several devices.
    """
    decoder: Any = adapter.decoder
    head: Any = adapter.model.get_output_embeddings()
    layers = getattr(decoder, "layers", None)
    if layers is None or type(layers[0]).__name__ not in LAYERS:
        kind = type(layers[0] if layers is not None else decoder).__name__
        raise NotFastError(f"{kind} is not among {', '.join(LAYERS)}")
    config: Any = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise NotFastError("some of its layers attend within a window")
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        raise NotFastError(f"its activation is {config.hidden_act}")
    _plain(decoder, head)
    first = layers[0].self_attn
    dim = first.head_dim
    parts = DecoderParts(
        tuple(_layer(one) for one in layers),
        adapter.model.get_input_embeddings().weight,
        decoder.norm.weight,
        head.weight,
        decoder.rotary_emb,
        first.q_proj.out_features // dim,
        first.k_proj.out_features // dim,
        dim,
        first.q_proj.in_features,
        layers[0].mlp.gate_proj.out_features,
        layers[0].input_layernorm.variance_epsilon,
        first.scaling,
    )
    weights = {(one.device, one.dtype) for one in (*decoder.parameters(), parts.head, parts.embedding)}
    if len(weights) > 1:
        raise NotFastError("its weights are of several devices or types")
    if not all(map(_aligned, [parts.head, *(one.weight for layer in layers for one in _products(layer))])):
        raise NotFastError("rows of its weights do not begin at multiples of 16 bytes")
    return parts


def _layer(layer: Any) -> LayerParts:
    attention, mlp = layer.self_attn, layer.mlp
    if attention.o_proj.bias is not None or any(one.bias is not None for one in (mlp.gate_proj, mlp.down_proj)):
        raise NotFastError("its output or MLP products have biases")
    return LayerParts(
        layer.input_layernorm.weight,
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


def _plain(decoder: Any, head: Any) -> None:
    """Refuse modules whose forward is more than its weights say: hooks, adapters, quantised products."""
    if type(head) is not nn.Linear or getattr(head, "bias", None) is not None:
        raise NotFastError(f"its head is a {type(head).__name__}")
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            raise NotFastError(f"{name} is a {type(module).__name__}")
        foreign = not all(map(own, module._forward_pre_hooks.values()))
        if module._forward_hooks or foreign or "forward" in vars(module):
            raise NotFastError(f"{name or 'the decoder'} is hooked or patched")
    if not all(isinstance(one, nn.Linear) for layer in decoder.layers for one in _products(layer)):
        raise NotFastError("some of its products are no nn.Linear")


def _products(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [getattr(attention, f"{one}_proj") for one in "qkvo"] + [mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _aligned(weight: torch.Tensor) -> bool:
    """Whether the device's copy engine can bring tiles of `weight` (N, K)."""
    return weight.is_contiguous() and weight.data_ptr() % 16 == 0 and weight[0].nbytes % 16 == 0
