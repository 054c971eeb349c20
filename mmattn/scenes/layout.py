"""Which objects a picture holds and how they are drawn, as random integers; no pixels here."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mmattn.scenes import rng
from mmattn.scenes.bank import SIZES, VARIANTS
from mmattn.scenes.catalog import PAIRS, THEMES, names, units

__all__ = ["CANVAS", "SLOTS", "TRAIN", "VAL_BROKEN", "VAL_TYPICAL", "Knobs", "Layout", "sample"]

CANVAS, SLOTS = 336, 7
_DRAWS = 6  # units drawn per picture, at most


@dataclass(frozen=True)
class Knobs:
    """Everything that shapes the distribution of pictures. Rates are in 1/1000.

    ``unit_counts``: how often a picture is composed of 1, 2, ... units (relative weights).
    ``break_rate``: a pair appears as one member alone. ``odd_rate``: a unit comes from any theme.
    ``ghost_low``, ``ghost_high``: how often one member of a complete pair is drawn at 2 to 4 % opacity although it
    counts as present; the pairs are spread evenly over this range. ``repeat_rate``: a second instance (and a third,
    half as often). ``small_rate``, ``fade_rate``: objects of 24 to 32 pixels, objects at 10 to 50 % opacity.
    ``dim_rate``, ``noise_rate``: darkened and grainy pictures.
    """

    unit_counts: tuple[int, ...] = (12, 30, 36, 16, 6)
    break_rate: int = 48
    odd_rate: int = 200
    ghost_low: int = 10
    ghost_high: int = 190
    repeat_rate: int = 120
    small_rate: int = 60
    fade_rate: int = 60
    dim_rate: int = 150
    noise_rate: int = 300


TRAIN = Knobs()
VAL_TYPICAL = Knobs(
    unit_counts=(0, 45, 45, 10), ghost_low=0, ghost_high=0, small_rate=20, fade_rate=20, dim_rate=80, noise_rate=120
)
VAL_BROKEN = Knobs(
    unit_counts=(0, 0, 20, 45, 35), break_rate=1000, odd_rate=500, ghost_low=0, ghost_high=0, small_rate=20,
    fade_rate=20, dim_rate=80, noise_rate=120,
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Drawing orders of B pictures. (B, 7) int64 per object in drawing order, the first drawn below the others:
    ``category`` (-1: no object), ``size`` (index into SIZES), ``variant``, ``left``, ``top`` (pixels), ``opacity``
    (of 256), ``ghost`` (bool). Per picture: ``key`` (B,), ``theme`` (B,), ``dim`` (B,) of 256, ``noise`` (B,).
    """

    category: Tensor
    size: Tensor
    variant: Tensor
    left: Tensor
    top: Tensor
    opacity: Tensor
    ghost: Tensor
    key: Tensor
    theme: Tensor
    dim: Tensor
    noise: Tensor


@dataclass(frozen=True)
class _Tables:
    members: Tensor  # (units, 2) category indices, -1: none
    theme_units: Tensor  # (themes, widest) unit indices, repeated cyclically
    theme_sizes: Tensor  # (themes,)
    ghost_rank: Tensor  # (units,) 0 .. pairs-1


@lru_cache(maxsize=4)
def _tables(device: str) -> _Tables:
    index = {name: i for i, name in enumerate(names())}
    everything = units()
    members = torch.tensor([[index[unit[0]], index[unit[1]] if len(unit) > 1 else -1] for unit in everything])
    unit_of = {name: i for i, unit in enumerate(everything) for name in unit}
    widest = max(len(theme) for theme in THEMES.values())
    rows = [[unit_of[theme[i % len(theme)]] for i in range(widest)] for theme in THEMES.values()]
    sizes = torch.tensor([len(theme) for theme in THEMES.values()])
    rank = torch.tensor([i * 7 % len(PAIRS) if i < len(PAIRS) else 0 for i in range(len(everything))])
    moved = (tensor.to(device) for tensor in (members, torch.tensor(rows), sizes, rank))
    return _Tables(*moved)


def theme_table(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """``members`` (units, 2), ``theme_units`` (themes, widest) and ``theme_sizes`` (themes,)."""
    tables = _tables(device)
    return tables.members, tables.theme_units, tables.theme_sizes


def _weighted(key: Tensor, stream: int, weights: tuple[int, ...]) -> Tensor:
    """Index drawn with the given integer weights, (B,)."""
    draw = rng.integers(key, stream, (), 0, sum(weights) - 1)
    edges = torch.tensor(weights, device=key.device).cumsum(0)
    return (draw[:, None] >= edges).sum(-1)


def _rate(key: Tensor, stream: int, shape: tuple[int, ...], rate: int | Tensor) -> Tensor:
    return rng.integers(key, stream, shape, 0, 999) < rate


def _contents(key: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor, Tensor]:
    """Categories (B, 7), ghost flags (B, 7) and themes (B,)."""
    tables = _tables(str(key.device))
    themes, pairs = len(THEMES), len(PAIRS)
    theme = rng.integers(key, 1, (), 0, themes - 1)
    inside = rng.integers(key, 2, (_DRAWS,), 0, 1 << 16) % tables.theme_sizes[theme][:, None]
    unit = tables.theme_units[theme[:, None], inside]
    anywhere = rng.integers(key, 3, (_DRAWS,), 0, len(tables.members) - 1)
    unit = torch.where(_rate(key, 4, (_DRAWS,), knobs.odd_rate), anywhere, unit)
    members = tables.members[unit]  # (B, 6, 2)
    alone = _rate(key, 5, (_DRAWS,), knobs.break_rate) & (members[..., 1] >= 0)
    swap = rng.integers(key, 6, (_DRAWS,), 0, 1).bool()
    first = torch.where(alone & swap, members[..., 1], members[..., 0])
    second = torch.where(alone, -1, members[..., 1])
    earlier = torch.ones(_DRAWS, _DRAWS, dtype=torch.bool, device=key.device).tril(-1)
    repeated = ((unit[:, :, None] == unit[:, None, :]) & earlier).any(-1)
    active = ~repeated & (torch.arange(_DRAWS, device=key.device) <= _weighted(key, 7, knobs.unit_counts)[:, None])
    weight = torch.where(active, 1 + (second >= 0).long(), 0)
    active &= weight.cumsum(-1) <= SLOTS  # a pair that does not fit is left out whole
    spread = (knobs.ghost_high - knobs.ghost_low) * tables.ghost_rank[unit] // (pairs - 1)
    ghosted = _rate(key, 8, (_DRAWS,), knobs.ghost_low + spread) & (second >= 0)
    which = rng.integers(key, 9, (_DRAWS,), 0, 1)
    drawn = torch.where(active[..., None], torch.stack([first, second], -1), -1).flatten(1)  # (B, 12)
    ghost = torch.stack([ghosted & (which == 0), ghosted & (which == 1)], -1).flatten(1)
    order = (drawn < 0).long().sort(dim=-1, stable=True).indices[:, :SLOTS]
    category, ghost = drawn.gather(1, order), ghost.gather(1, order)
    return _repeat(key, knobs, category, ghost), ghost & (category >= 0), theme


def _repeat(key: Tensor, knobs: Knobs, category: Tensor, ghost: Tensor) -> Tensor:
    """Sometimes give the first object a second instance, and then a third, where slots are free."""
    rows = torch.arange(len(key), device=key.device)
    again = _rate(key, 10, (), knobs.repeat_rate) & ~ghost[:, 0]
    category = category.clone()
    for stream in (11, 12):
        count = (category >= 0).sum(-1)
        free = again & (count < SLOTS)
        place = count.clamp(max=SLOTS - 1)
        category[rows, place] = torch.where(free, category[:, 0], category[rows, place])
        again = free & (rng.integers(key, stream, (), 0, 1) == 1)
    return category


def sample(seed: int, index: Tensor, knobs: Knobs) -> Layout:
    """Draw the layouts of pictures number ``index`` (int64, (B,)) of a world with this seed."""
    key = rng.keys(seed, index)
    category, ghost, theme = _contents(key, knobs)
    present = category >= 0
    cell = rng.integers(key, 20, (9,), 0, 1 << 30).argsort(dim=-1, stable=True)[:, :SLOTS]
    few = present.sum(-1, keepdim=True) <= 4
    size = torch.where(few, rng.integers(key, 21, (SLOTS,), 3, 8), rng.integers(key, 22, (SLOTS,), 2, 6))
    size = torch.where(_rate(key, 23, (SLOTS,), knobs.small_rate), rng.integers(key, 24, (SLOTS,), 0, 1), size)
    faded = _rate(key, 25, (SLOTS,), knobs.fade_rate)
    opacity = torch.where(faded, rng.integers(key, 26, (SLOTS,), 26, 128), 256)
    opacity = torch.where(ghost, rng.integers(key, 27, (SLOTS,), 5, 10), opacity)
    pixels = torch.tensor(SIZES, device=key.device)[size]
    left = 56 + 112 * (cell % 3) + rng.integers(key, 28, (SLOTS,), -24, 24) - pixels // 2
    top = 56 + 112 * (cell // 3) + rng.integers(key, 29, (SLOTS,), -24, 24) - pixels // 2
    left = torch.minimum(left.clamp(min=0), CANVAS - pixels)
    top = torch.minimum(top.clamp(min=0), CANVAS - pixels)
    variant = rng.integers(key, 30, (SLOTS,), 0, VARIANTS - 1)
    # Faint objects below everything, then mostly large before small.
    depth = rng.integers(key, 31, (SLOTS,), 0, 60) - pixels + torch.where(opacity < 256, -1000, 0)
    order = torch.where(present, depth, 1000).argsort(dim=-1, stable=True)
    category, size, variant, left, top, opacity, ghost = (
        each.gather(1, order) for each in (category, size, variant, left, top, opacity, ghost)
    )
    dim = torch.where(_rate(key, 32, (), knobs.dim_rate), rng.integers(key, 33, (), 100, 200), 256)
    noise = torch.where(_rate(key, 34, (), knobs.noise_rate), rng.integers(key, 35, (), 8, 40), 0)
    return Layout(category, size, variant, left, top, opacity, ghost, key, theme, dim, noise)
