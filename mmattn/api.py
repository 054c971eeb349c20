"""The two ways to a model: load one by name, or wrap one that is loaded already."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from mmattn.checkup import glance
from mmattn.loading import load_pretrained
from mmattn.vlm import VLM


def load(
    name: str = "scenes-llava",
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> VLM:
    """Load a model with its processor.

    Args:
        name: a bundled name ("scenes-llava"), a local folder, or a hub id of a supported family.
        device: "cpu", "cuda", "cuda:1", ...; by default the GPU if there is one.
        dtype: "float32", "bfloat16", "float16", "auto" or a torch dtype; by default float32 on the CPU and the
            checkpoint's own type on a GPU.
        trust_remote_code: run Python code that the model repository brings along. Off unless you trust it.
        kwargs: passed to transformers' `from_pretrained` (device_map, quantization_config, revision, ...).

    Raises:
        MmattnError: unknown or unsupported model, missing files, no such device, out of memory.
    """
    model, processor, presets = load_pretrained(name, device, dtype, trust_remote_code, **kwargs)
    vlm = VLM(model, processor, name, presets)
    glance(vlm)
    return vlm


def wrap(model: PreTrainedModel, processor: Any) -> VLM:
    """Use a transformers model that is loaded already; it is not modified.

    Raises:
        MmattnError: the model's family is not supported.
    """
    return VLM(model, processor)
