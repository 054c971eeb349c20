"""One adapter per model family; the family is recognised from the model's configuration."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from mmattn.adapters.base import Adapter, Added, Embedded, Pixels, Prepared, Shares
from mmattn.adapters.cache import SharedCache
from mmattn.adapters.instructblip import InstructBlipAdapter
from mmattn.adapters.layout import Affine, ImageLayout, Layout, View
from mmattn.adapters.llava import LlavaAdapter
from mmattn.adapters.llava_next import LlavaNextAdapter
from mmattn.adapters.llava_onevision import LlavaOnevisionAdapter
from mmattn.adapters.marks import Mark
from mmattn.adapters.qwen_vl import QwenVLAdapter
from mmattn.adapters.sample import Sample
from mmattn.errors import MmattnError

ADAPTERS: tuple[type[Adapter], ...] = (
    LlavaAdapter, LlavaNextAdapter, LlavaOnevisionAdapter, InstructBlipAdapter, QwenVLAdapter,
)  # fmt: skip

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Added",
    "Affine",
    "Embedded",
    "ImageLayout",
    "Layout",
    "Mark",
    "Pixels",
    "Prepared",
    "Sample",
    "SharedCache",
    "Shares",
    "View",
    "adapter_for",
    "require_supported",
]


# Models that live outside transformers, or beside a supported family, and what their users can take instead.
NEAREST = {
    "qwen": "Qwen2-VL or Qwen2.5-VL (Qwen-VL itself is code on the hub, written for transformers 4)",
    "minicpmv": "Qwen2.5-VL or LLaVA-NeXT (MiniCPM-V is code on the hub)",
    "minicpmo": "Qwen2.5-VL or LLaVA-NeXT (MiniCPM-o is code on the hub)",
    "llava_llama": "llava-hf/llava-1.5-7b-hf, the same weights as transformers loads them",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf, the same weights as transformers loads them",
    "blip-2": "InstructBLIP",
    "instructblipvideo": "InstructBLIP",
    "qwen2_5_omni": "Qwen2.5-VL",
}


def require_supported(model_type: str) -> type[Adapter]:
    """The adapter class for a configuration's `model_type`.

    Raises:
        MmattnError: no adapter knows it; the message lists those that exist.
    """
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(f"{adapter.family} (model_type {', '.join(adapter.model_types)})" for adapter in ADAPTERS)
    near = f"The nearest supported model is {NEAREST[model_type]}. " if model_type in NEAREST else ""
    raise MmattnError(f"Models of type {model_type!r} are not supported", f"{near}Supported families: {known}.")


def adapter_for(model: PreTrainedModel, processor: Any) -> Adapter:
    return require_supported(model.config.model_type).create(model, processor)
