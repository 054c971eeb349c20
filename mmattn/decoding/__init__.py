"""Decoding: methods as frozen dataclasses, and the batched engine that runs them."""

from mmattn.decoding.ablation import Asked, measure_heads
from mmattn.decoding.act import ACT
from mmattn.decoding.avisc import AvisC
from mmattn.decoding.boost import Boost
from mmattn.decoding.cmai import CMAI
from mmattn.decoding.deco import DeCo
from mmattn.decoding.dola import DoLa
from mmattn.decoding.emphasis import Emphasis, emphasise
from mmattn.decoding.engine import Generation
from mmattn.decoding.iava import IAVA
from mmattn.decoding.icd import ICD
from mmattn.decoding.instaboost import InstABoost
from mmattn.decoding.m3id import M3ID
from mmattn.decoding.method import Branch, Card, Combined, Exits, Method, Step
from mmattn.decoding.pai import PAI
from mmattn.decoding.paint import PAINT
from mmattn.decoding.pasta import PASTA
from mmattn.decoding.prompted import AttentionPrompt
from mmattn.decoding.rbd import RBD
from mmattn.decoding.recorder import Capture
from mmattn.decoding.registry import MethodInfo, methods, resolve, split_methods
from mmattn.decoding.sampling import Sampling
from mmattn.decoding.seam import VSEAM
from mmattn.decoding.sid import SID
from mmattn.decoding.sinks import Sinks, find_sinks
from mmattn.decoding.split_softmax import SplitSoftmax
from mmattn.decoding.spotlight import SpotLight
from mmattn.decoding.var import VAR
from mmattn.decoding.vcd import VCD
from mmattn.decoding.vhr import VHR

__all__ = [
    "ACT",
    "CMAI",
    "IAVA",
    "ICD",
    "M3ID",
    "PAI",
    "PAINT",
    "PASTA",
    "RBD",
    "SID",
    "VAR",
    "VCD",
    "VHR",
    "VSEAM",
    "Asked",
    "AttentionPrompt",
    "AvisC",
    "Boost",
    "Branch",
    "Capture",
    "Card",
    "Combined",
    "DeCo",
    "DoLa",
    "Emphasis",
    "Exits",
    "Generation",
    "InstABoost",
    "Method",
    "MethodInfo",
    "Sampling",
    "Sinks",
    "SplitSoftmax",
    "SpotLight",
    "Step",
    "emphasise",
    "find_sinks",
    "measure_heads",
    "methods",
    "resolve",
    "split_methods",
]
