"""Methods written once more, from their equations, into an eager forward over the full matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import mmattn
from tests.stock import attention, is_t5


@dataclass
class Whole:
    """One layer's full attention.

    Attributes:
        scores: (B, H, T, S), -inf where hidden. image: (B, S) bool. rows: (B, T) bool, text after a picture.
        states: (B, T, D) entering the layer; the encoder's output of an encoder-decoder.
    """

    layer: int
    scores: torch.Tensor
    image: torch.Tensor
    rows: torch.Tensor
    states: torch.Tensor


# Gives the weights of every row; those that must not be edited are put back.
Change = Callable[[Whole], torch.Tensor]


@contextmanager
def full_matrix(vlm: mmattn.VLM, ids: torch.Tensor, change: Change, every_row: bool = False) -> Iterator[None]:
    """Prefills of the prompts `ids` (B, T) attend as `change` says, in text after a picture or in `every_row`."""
    image = ids == vlm.adapter.image_token_id
    after = ~image & (image.cumsum(1) > 0) | every_row
    layers = {id(layer): number for number, layer in enumerate(vlm.adapter.attention_layers)}
    states: dict[int, torch.Tensor] = {}

    def keep(number: int) -> Any:
        return lambda _module, given, _out=None: states.update({number: given[3 if is_t5(vlm) else 0]})

    def full(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **given: Any) -> Any:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = query @ key.mT * scaling + given.get("position_bias", 0)
        if mask is not None:
            mask = mask[..., : key.shape[2]]
            mask = mask if mask.dtype == torch.bool else mask > -1e9
            scores = scores.masked_fill(~mask, -torch.inf)
        plain = scores.softmax(-1).nan_to_num(0)
        weights = plain
        if id(module) in layers:
            number = layers[id(module)]
            rows = image.any(1, keepdim=True) if is_t5(vlm) else after
            new = change(Whole(number, scores, image, rows, states[number]))
            weights = torch.where(rows[:, None, :, None], new, plain)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("oracle", full)
    AttentionMaskInterface.register("oracle", eager_mask)
    handles = [block.register_forward_pre_hook(keep(number)) for number, block in enumerate(vlm.adapter.blocks)]
    try:
        with attention(vlm, "oracle"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def prompt_logits(vlm: mmattn.VLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Next-token scores (B, V) after the prompts."""
    with torch.no_grad():
        logits: torch.Tensor = vlm.model(**inputs).logits[:, -1]
    return logits
