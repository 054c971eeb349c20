"""Decoding: methods as frozen dataclasses, and the batched engine that runs them."""

from mmattn.decoding.boost import Boost
from mmattn.decoding.engine import Generation
from mmattn.decoding.method import Branch, Card, Combined, Method, Step
from mmattn.decoding.recorder import Capture
from mmattn.decoding.registry import MethodInfo, methods, resolve, split_methods
from mmattn.decoding.sampling import Sampling
from mmattn.decoding.var import VAR
from mmattn.decoding.vcd import VCD

__all__ = [
    "VAR",
    "VCD",
    "Boost",
    "Branch",
    "Capture",
    "Card",
    "Combined",
    "Generation",
    "Method",
    "MethodInfo",
    "Sampling",
    "Step",
    "methods",
    "resolve",
    "split_methods",
]
