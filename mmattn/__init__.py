"""mmattn: see where vision-language models look, change where they look, and make them hallucinate less."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmattn.adapters import Mark
    from mmattn.api import load, wrap
    from mmattn.custom import custom_generate
    from mmattn.decoding import IAVA, RBD, VAR, VCD, Boost, Capture, Generation, Method, emphasise, find_sinks, methods
    from mmattn.editing import edit
    from mmattn.errors import MmattnError
    from mmattn.grounding import Attention, Grounding
    from mmattn.images import open_image
    from mmattn.vlm import VLM

__version__ = "0.1.0"

__all__ = [
    "IAVA",
    "RBD",
    "VAR",
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
    "IAVA": "mmattn.decoding",
    "RBD": "mmattn.decoding",
    "VAR": "mmattn.decoding",
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

_PARTS = (
    "adapters", "attention", "bench", "decoding", "demo", "eval", "grounding", "prompting", "referring", "scenes",
    "signals",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds; `mmattn --help` should not.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _PARTS:
        return import_module(f"mmattn.{name}")
    decoding = import_module("mmattn.decoding")
    if name in decoding.__all__:  # every method, by the name of its class
        return getattr(decoding, name)
    raise AttributeError(f"module 'mmattn' has no attribute {name!r}")
