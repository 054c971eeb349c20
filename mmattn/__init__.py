"""mmattn: see where vision-language models look, change where they look, and make them hallucinate less."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmattn.adapters import Mark
    from mmattn.api import load, wrap
    from mmattn.custom import custom_generate
    from mmattn.decoding import VCD, Boost, Capture, Generation, Method, emphasise, find_sinks, methods
    from mmattn.editing import edit
    from mmattn.errors import MmattnError
    from mmattn.grounding import Attention, Grounding
    from mmattn.images import open_image
    from mmattn.vlm import VLM

__version__ = "0.1.0"

__all__ = [
    "VCD",
    "VLM",
    "Attention",
    "Boost",
    "Capture",
    "Generation",
    "Grounding",
    "Mark",
    "Method",
    "MmattnError",
    "custom_generate",
    "edit",
    "emphasise",
    "find_sinks",
    "load",
    "methods",
    "open_image",
    "wrap",
]

_HOME = {
    "VCD": "mmattn.decoding",
    "VLM": "mmattn.vlm",
    "Attention": "mmattn.grounding",
    "Boost": "mmattn.decoding",
    "Capture": "mmattn.decoding",
    "Generation": "mmattn.decoding",
    "Grounding": "mmattn.grounding",
    "Mark": "mmattn.adapters",
    "Method": "mmattn.decoding",
    "MmattnError": "mmattn.errors",
    "custom_generate": "mmattn.custom",
    "edit": "mmattn.editing",
    "emphasise": "mmattn.decoding",
    "find_sinks": "mmattn.decoding",
    "load": "mmattn.api",
    "methods": "mmattn.decoding",
    "open_image": "mmattn.images",
    "wrap": "mmattn.api",
}


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds; `mmattn --help` should not.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in (
        "adapters",
        "attention",
        "decoding",
        "eval",
        "grounding",
        "prompting",
        "referring",
        "scenes",
        "signals",
    ):
        return import_module(f"mmattn.{name}")
    raise AttributeError(f"module 'mmattn' has no attribute {name!r}")
