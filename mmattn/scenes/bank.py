"""Sprites at every size, tilt and flip, made from the atlas with integer arithmetic only."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmattn.scenes.catalog import CATEGORIES

__all__ = ["ATLAS", "SIZES", "VARIANTS", "atlas", "full_area", "packed_bank", "sprite", "sprites"]

ATLAS = Path(__file__).parent / "assets" / "atlas.png"
CELL, COLUMNS = 128, 8
SIZES: tuple[int, ...] = (24, 32, 44, 56, 72, 88, 104, 124, 148)
VARIANTS = 6  # (upright, tilted left, tilted right) x (as drawn, mirrored)
_ONE = 4096  # fixed-point unit of the rotation
_TURN = ((4096, 0), (4752, 1010), (4752, -1010))  # cos, sin of 0 and 12 degrees, zoomed out so that corners stay in


@lru_cache(maxsize=2)
def atlas(device: str = "cpu") -> Tensor:
    """Premultiplied source sprites: (65, 4, 128, 128) int64, colours times alpha and alpha, 0..65025 and 0..255."""
    with Image.open(ATLAS) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGBA")))
    cells = pixels.reshape(-1, CELL, COLUMNS, CELL, 4).permute(0, 2, 4, 1, 3).reshape(-1, 4, CELL, CELL)
    cells = cells[: len(CATEGORIES)].to(device=device, dtype=torch.int64)
    return torch.cat([cells[:, :3] * cells[:, 3:], cells[:, 3:]], dim=1)


def _turn(source: Tensor, cos: int, sin: int) -> Tensor:
    """Rotate (N, 4, 128, 128) by inverse mapping with bilinear weights in 1/256."""
    axis = torch.arange(CELL, device=source.device) * 2 - (CELL - 1)
    centre = (CELL - 1) * _ONE
    x = (axis[None, :] * cos - axis[:, None] * sin + centre) >> 5  # 1/256 of a source pixel
    y = (axis[None, :] * sin + axis[:, None] * cos + centre) >> 5
    padded = torch.nn.functional.pad(source, (1, 1, 1, 1))
    x = (x + 256).clamp(0, (CELL + 1) * 256 - 1)
    y = (y + 256).clamp(0, (CELL + 1) * 256 - 1)
    x0, y0, fx, fy = x >> 8, y >> 8, x & 255, y & 255
    corners = (
        padded[..., y0, x0] * (256 - fx) * (256 - fy)
        + padded[..., y0, x0 + 1] * fx * (256 - fy)
        + padded[..., y0 + 1, x0] * (256 - fx) * fy
        + padded[..., y0 + 1, x0 + 1] * fx * fy
    )
    return (corners + 32768) >> 16


def _overlap(size: int, device: torch.device) -> Tensor:
    """Area weights (size, 128): how much of each source pixel a target pixel covers; rows sum to 128."""
    target = torch.arange(size, device=device)[:, None] * CELL
    origin = torch.arange(CELL, device=device)[None, :] * size
    return (torch.minimum(target + CELL, origin + size) - torch.maximum(target, origin)).clamp(min=0).double()


def sprites(category: int | slice, variant: int, size: int, device: str = "cpu") -> Tensor:
    """Straight-alpha sprites (N, 4, size, size) uint8 of one category, or of a slice of them."""
    source = atlas(device)[category if isinstance(category, slice) else slice(category, category + 1)]
    turned = _turn(source, *_TURN[variant % 3]) if variant % 3 else source
    if variant >= 3:
        turned = turned.flip(-1)
    weights = _overlap(size, turned.device)
    # Sums of integers below 2**53: exact in float64, in whatever order they are added.
    total = (weights @ turned.double() @ weights.T).long()
    weight, area = total[:, 3:], CELL * CELL
    colour = torch.where(weight > 0, (total[:, :3] + weight // 2) // weight.clamp(min=1), 0)
    return torch.cat([colour, (weight + area // 2) // area], dim=1).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=4096)
def sprite(category: int, variant: int, size_index: int) -> Tensor:
    """One sprite (4, size, size) uint8 on the CPU, cached."""
    return sprites(category, variant, SIZES[size_index])[0]


@lru_cache(maxsize=4096)
def full_area(category: int, variant: int, size_index: int) -> int:
    """Opaque pixels (alpha >= 128) of a sprite nothing covers."""
    return int((sprite(category, variant, size_index)[3] >= 128).sum())


def packed_bank(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Every sprite in one table: pixels (N,) int32 as R | G << 8 | B << 16 | A << 24; offsets and opaque areas
    (65, 6, 9) int64.
    """
    count = len(CATEGORIES)
    pixels: list[Tensor] = []
    offsets = torch.zeros(count, VARIANTS, len(SIZES), dtype=torch.int64, device=device)
    areas = torch.zeros_like(offsets)
    start = 0
    for variant in range(VARIANTS):
        for index, size in enumerate(SIZES):
            block = sprites(slice(None), variant, size, device).to(torch.int32)
            packed = block[:, 0] | (block[:, 1] << 8) | (block[:, 2] << 16) | (block[:, 3] << 24)
            offsets[:, variant, index] = start + torch.arange(count, device=device) * size * size
            areas[:, variant, index] = (block[:, 3] >= 128).sum((1, 2))
            pixels.append(packed.flatten())
            start += count * size * size
    return torch.cat(pixels), offsets, areas
