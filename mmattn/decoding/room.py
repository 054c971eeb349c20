"""How many samples a batch may hold, by the memory that is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmattn.adapters import Adapter
from mmattn.decoding.requests import Request

# Rows that the fused step serves at one reading of the weights, and samples where there is no such step.
ROWS, ON_CPU = 64, 16
# Of the free memory; an estimate may be wrong, and a batch that does not fit is halved.
PART = 0.7


def affordable(adapter: Adapter, requests: Sequence[Request], branches: int, free: int | None = None) -> int:
    """Samples per batch: a power of two, and no more than are worth it.

    Args:
        branches: rows of each sample.
        free: bytes; those of the model's device by default.
    """
    if free is None:
        if adapter.device.type != "cuda":
            return ON_CPU
        held = torch.cuda.memory_reserved(adapter.device) - torch.cuda.memory_allocated(adapter.device)
        free = torch.cuda.mem_get_info(adapter.device)[0] + held
    width = max(len(one.prepared.ids) + one.room for one in requests)
    wanted = min(ROWS // branches, int(PART * free / (branches * width * _token(adapter))))
    return 1 << max(wanted, 1).bit_length() - 1


def _token(adapter: Adapter) -> int:
    """Bytes of one token: its keys and values, and what a layer and the head make of it in a prefill."""
    config: Any = adapter.model.config.get_text_config()
    heads = config.num_attention_heads
    hidden, groups = config.hidden_size, getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    numbers = 2 * adapter.depth * groups * dim + 4 * hidden + 3 * inner + 2 * (heads + 2 * groups) * dim
    size: int = numbers * adapter.model.dtype.itemsize
    return size
