"""Vision features of pictures that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from mmattn.adapters import Adapter, Pixels, Shares

ROOM = 1 << 28


class Features:
    """Features by the pictures' keys, at most `room` bytes of them; those not used for longest go first.

    For one model with weights that stay as they are, and one method and seed: keys tell pictures apart, no more.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def of(
        self, adapter: Adapter, pictures: Mapping[str, Pixels], shares: Shares | None = None
    ) -> dict[str, torch.Tensor]:
        """Features of all `pictures`; `shares` is filled for all of them, as `Adapter.encode` does."""
        if shares is not None and adapter.mixed:
            return dict(zip(pictures, adapter.encode(list(pictures.values()), shares), strict=True))
        missing = {key: one for key, one in pictures.items() if key not in self._kept}
        new = dict(zip(missing, adapter.encode(list(missing.values())), strict=True)) if missing else {}
        found = {key: new[key] if key in new else self._kept[key] for key in pictures}
        for key, one in found.items():
            # A slice of a batch's tensor would keep all of it alive.
            self._kept[key] = one.clone() if key in new else one
            self._kept.move_to_end(key)
        self._shrink()
        return found

    def keep(self, key: str, features: torch.Tensor) -> None:
        """Let `features` be those of the pictures named `key`."""
        self._kept[key] = features
        self._shrink()

    def _shrink(self) -> None:
        while sum(one.nbytes for one in self._kept.values()) > self._room:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Free them all."""
        self._kept.clear()
