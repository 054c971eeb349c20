"""What a vision tower's class token looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from mmattn.attention import RowCapture, Session
from mmattn.errors import MmattnError


def class_rows(tower: PreTrainedModel, count: int, layers: Sequence[int], encode: Callable[[], object]) -> torch.Tensor:
    """Attention of the class token on each patch, (layers, pictures, patches) on the CPU, summed over heads.

    Args:
        tower: a CLIP-like transformer, whose class token comes first.
        count: how many pictures (or tiles) `encode` sends through it, in one call.
        layers: of the tower; negative ones count from the end.

    Raises:
        MmattnError: the tower has no class token.
    """
    if not any(name.endswith("class_embedding") for name, _ in tower.named_parameters()):
        raise without_class_token(tower.config.model_type)
    attention = [module for name, module in tower.named_modules() if name.endswith(".self_attn")]
    capture = RowCapture(torch.zeros(count, 1).long(), layers=tuple(layer % len(attention) for layer in layers))
    with Session(tower, attention, "", capture):
        encode()
    return capture.stacked()[:, :, :, 0, 1:].sum(2).cpu()


def without_class_token(kind: str) -> MmattnError:
    """The error that a tower of this kind has no class token."""
    return MmattnError(
        f"The vision tower ({kind}) has no class token whose attention could be read",
        "Use a model with a CLIP tower, such as LLaVA-1.5, LLaVA-NeXT or InstructBLIP.",
    )
