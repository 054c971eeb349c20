"""Next-token scores of hidden states that have not gone through all layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mmattn.adapters import Adapter
from mmattn.decoding.method import Exits, Method
from mmattn.errors import MmattnError


def exits_of(adapter: Adapter, method: Method) -> Exits | None:
    """Where the method reads unfinished states of this model.

    Raises:
        MmattnError: it names a layer that the model does not have.
    """
    depth = adapter.depth
    exits = method.exits(depth, adapter.tied)
    if exits is not None and not set(exits.layers) <= set(range(depth)):
        wrong = next(one for one in exits.layers if not 0 <= one < depth)
        raise MmattnError(f"{method.label} reads layer {wrong}", f"This model has layers 0 to {depth - 1}.")
    return exits


def exit_scores(
    adapter: Adapter, exits: Exits | None, left: Mapping[int, torch.Tensor], branches: int
) -> torch.Tensor | None:
    """Scores (B, exits, V) float32 of the plain branch, from hidden states (B `branches`, D) by layer."""
    if exits is None:
        return None
    states = [left[layer][::branches] for layer in exits.layers]
    hidden = torch.stack([one.to(states[-1].device) for one in states], 1)
    return adapter.logits(adapter.final_norm(hidden) if exits.normed else hidden)


def layer_numbers(method: str, text: str) -> tuple[int, ...]:
    """The layers that "20-28" or "0 2 4" name, in order.

    Raises:
        MmattnError: it names none.
    """
    found: list[int] = []
    for word in text.replace(",", " ").split():
        ends = word.split("-")
        if len(ends) > 2 or not all(one.isdecimal() for one in ends):
            found = []
            break
        found += range(int(ends[0]), int(ends[-1]) + 1)
    if not found:
        raise MmattnError(f"{method} does not know the layers {text!r}", 'Write numbers, as in "20-28" or "0 2 4".')
    return tuple(dict.fromkeys(found))
