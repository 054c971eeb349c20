"""Pixels from layouts. Integer arithmetic throughout, so that every device draws the same bytes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmattn.scenes import rng
from mmattn.scenes.bank import SIZES, full_area, packed_bank, sprite
from mmattn.scenes.layout import CANVAS, SLOTS, Layout

__all__ = ["Bank", "background", "draw", "draw_batch", "visible"]

_STEP = 56  # pixels between background grid points
_GRAIN = 2  # side of a noise block


def background(key: Tensor) -> Tensor:
    """A low-frequency wash of colour, (B, 3, 336, 336) int32 in 0..255."""
    points = CANVAS // _STEP + 1
    grey = rng.integers(key, 40, (1, 1, 1), 70, 225)
    tint = rng.integers(key, 41, (3, 1, 1), -35, 35)
    grid = (grey + tint + rng.integers(key, 42, (3, points, points), -28, 28)).clamp(0, 255).to(torch.int32)
    axis = torch.arange(CANVAS, device=key.device)
    low, high = axis // _STEP, (axis % _STEP).to(torch.int32)
    rows = grid[:, :, low] * (_STEP - high)[:, None] + grid[:, :, low + 1] * high[:, None]
    both = rows[..., low] * (_STEP - high) + rows[..., low + 1] * high
    return (both + _STEP * _STEP // 2) // (_STEP * _STEP)


def _blend(under: Tensor, colour: Tensor, alpha: Tensor, opacity: Tensor | int) -> Tensor:
    """``colour`` over ``under`` (int32); alpha 0..255 scaled by opacity of 256."""
    weight = ((alpha + (alpha >> 7)) * opacity) >> 8
    return (under * (256 - weight) + colour * weight + 128) >> 8


def _finish(picture: Tensor, layout: Layout) -> Tensor:
    """Dimming and grain, (B, 3, 336, 336) uint8."""
    side = CANVAS // _GRAIN
    dimmed = (picture * layout.dim.to(torch.int32)[:, None, None, None]) >> 8
    grain = rng.integers(layout.key, 43, (3, side, side), -128, 128).to(torch.int32)
    grain = (grain * layout.noise.to(torch.int32)[:, None, None, None]) >> 7
    grain = grain.repeat_interleave(_GRAIN, -1).repeat_interleave(_GRAIN, -2)
    return (dimmed + grain).clamp(0, 255).to(torch.uint8)


def draw(layout: Layout, row: int) -> tuple[Tensor, Tensor]:
    """One picture on the CPU: (3, 336, 336) uint8, and (336, 336) int64 the object slot on top, -1 for none."""
    one = Layout(**{name: value[row : row + 1] for name, value in vars(layout).items()})
    picture = background(one.key)[0]
    owner = torch.full((CANVAS, CANVAS), -1)
    for slot in range(SLOTS):
        category = int(one.category[0, slot])
        if category < 0:
            continue
        pixels = sprite(category, int(one.variant[0, slot]), int(one.size[0, slot])).to(torch.int32)
        top, left, extent = int(one.top[0, slot]), int(one.left[0, slot]), pixels.shape[-1]
        area = (slice(top, top + extent), slice(left, left + extent))
        picture[:, *area] = _blend(picture[:, *area], pixels[:3], pixels[3], int(one.opacity[0, slot]))
        owner[area] = torch.where(pixels[3] >= 128, slot, owner[area])
    if int(one.dim) == 256 and int(one.noise) == 0:
        return picture.to(torch.uint8), owner
    return _finish(picture[None], one)[0], owner


@dataclass(frozen=True)
class Bank:
    """The sprite table of :func:`packed_bank` on one device."""

    pixels: Tensor
    offsets: Tensor
    areas: Tensor

    @classmethod
    def on(cls, device: str) -> "Bank":
        """Build the table on a device (about 100 MB)."""
        return cls(*packed_bank(device))


def draw_batch(layout: Layout, pixels: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The same as :func:`draw` for a whole batch, one pass over the canvas per object slot: (B, 3, 336, 336) uint8
    and (B, 336, 336) int8. Made to be compiled for a GPU.
    """
    picture = background(layout.key)
    device = layout.key.device
    y = torch.arange(CANVAS, device=device, dtype=torch.int32)[:, None]
    x = torch.arange(CANVAS, device=device, dtype=torch.int32)[None, :]
    sizes = torch.tensor(SIZES, device=device)[layout.size].to(torch.int32)
    start = offsets[layout.category.clamp(min=0), layout.variant, layout.size].to(torch.int32)
    owner = torch.full((len(layout.key), CANVAS, CANVAS), -1, dtype=torch.int8, device=device)
    for slot in range(SLOTS):
        size, base = (t[:, slot, None, None] for t in (sizes, start))
        v = y - layout.top[:, slot, None, None].to(torch.int32)
        u = x - layout.left[:, slot, None, None].to(torch.int32)
        inside = (v >= 0) & (v < size) & (u >= 0) & (u < size) & (layout.category[:, slot, None, None] >= 0)
        packed = pixels[torch.where(inside, base + v * size + u, 0)]
        alpha = torch.where(inside, (packed >> 24) & 255, 0)
        colour = torch.stack([packed & 255, (packed >> 8) & 255, (packed >> 16) & 255], 1)
        opacity = layout.opacity[:, slot, None, None].to(torch.int32)
        picture = _blend(picture, colour, alpha[:, None], opacity[:, None])
        owner = torch.where(alpha >= 128, slot, owner)
    return _finish(picture, layout), owner


def visible(category: Tensor, shown: Tensor, full: Tensor) -> Tensor:
    """Which objects count as present (and are annotated): at least 40 visible pixels and 30 % of the sprite.

    ``category``, ``shown`` (visible pixels) and ``full`` (pixels when nothing covers it) have one shape, (B, 7).
    """
    return (category >= 0) & (shown >= 40) & (shown * 10 >= full * 3)


def areas_of(layout: Layout, row: int) -> Tensor:
    """Uncovered pixel counts of a picture's objects, (7,) int64; 0 for empty slots."""
    fields = zip(layout.category[row].tolist(), layout.variant[row].tolist(), layout.size[row].tolist(), strict=True)
    return torch.tensor([full_area(c, v, s) if c >= 0 else 0 for c, v, s in fields])
