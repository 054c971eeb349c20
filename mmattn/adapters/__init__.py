"""One adapter per model family; the family is recognised from the model's configuration."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from mmattn.adapters.base import Adapter, Embedded, Pixels, Prepared, Shares
from mmattn.adapters.cache import SharedCache
from mmattn.adapters.instructblip import InstructBlipAdapter
from mmattn.adapters.layout import Affine, ImageLayout, Layout, View
from mmattn.adapters.llava import LlavaAdapter
from mmattn.adapters.llava_next import LlavaNextAdapter
from mmattn.adapters.qwen_vl import QwenVLAdapter
from mmattn.adapters.sample import Sample
from mmattn.errors import MmattnError

ADAPTERS: tuple[type[Adapter], ...] = (LlavaAdapter, LlavaNextAdapter, InstructBlipAdapter, QwenVLAdapter)

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Affine",
    "Embedded",
    "ImageLayout",
    "Layout",
    "Pixels",
    "Prepared",
    "Sample",
    "SharedCache",
    "Shares",
    "View",
    "adapter_for",
    "require_supported",
]


def require_supported(model_type: str) -> type[Adapter]:
    """The adapter class for a configuration's `model_type`.

    Raises:
        MmattnError: no adapter knows it; the message lists those that exist.
    """
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(f"{adapter.family} (model_type {', '.join(adapter.model_types)})" for adapter in ADAPTERS)
    raise MmattnError(f"Models of type {model_type!r} are not supported", f"Supported families: {known}.")


def adapter_for(model: PreTrainedModel, processor: Any) -> Adapter:
    return require_supported(model.config.model_type).create(model, processor)
