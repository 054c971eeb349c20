"""Random integers as a pure function of (seed, picture, stream, position): the same on every device."""

import torch
from torch import Tensor

__all__ = ["integers", "keys", "mix"]

_MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (the "lowbias32" finaliser) of an int64 tensor holding values below 2**32."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def keys(seed: int, index: Tensor) -> Tensor:
    """One 32-bit key per picture number (int64 tensor of any shape)."""
    root = mix(torch.tensor((seed * 0x9E3779B9 + 0x7F4A7C15) & _MASK, device=index.device))
    return mix((mix(index & _MASK) + root) & _MASK)


def integers(key: Tensor, stream: int, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Integers in [low, high], shape ``key.shape + shape``; another ``stream`` gives independent values."""
    count = 1
    for extent in shape:
        count *= extent
    position = torch.arange(count, device=key.device) + (stream << 20)
    word = mix((key[..., None] + mix(position)) & _MASK)
    return (low + ((word * (high - low + 1)) >> 32)).reshape(*key.shape, *shape)
