"""Tiny random models built from the real configuration classes, with real processors made on the spot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from tests.tiny import tiny_llava


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def vlm() -> mmattn.VLM:
    """A LLaVA with random weights: 2 CLIP layers, 3 decoder layers, 16 image tokens."""
    return mmattn.wrap(*tiny_llava())


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Five pictures of different sizes and content."""
    random = np.random.default_rng(0)
    sizes = [(56, 56), (120, 60), (57, 131), (300, 40), (33, 35)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
