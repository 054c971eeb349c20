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
        self._shares: Shares = {}

    def of(
        self, adapter: Adapter, pictures: Mapping[str, Pixels], shares: Shares | None = None
    ) -> dict[str, torch.Tensor]:
        """Features of all `pictures`; `shares` is filled for all of them, as `Adapter.encode` does."""
        asked = shares is not None and adapter.mixed
        missing = {key: one for key, one in pictures.items() if not self.known(key, asked)}
        found_shares: Shares | None = {} if asked else None
        new = dict(zip(missing, adapter.encode(list(missing.values()), found_shares), strict=True)) if missing else {}
        found = {key: self._kept[key] if key in self._kept else new[key].clone() for key in pictures}
        if shares is not None and found_shares is not None:
            self._shares.update(found_shares)
            shares.update({key: self._shares[key] for key in pictures})
        for key, one in found.items():  # copies: a slice of a batch's tensor would keep all of it alive
            self._kept[key] = one
            self._kept.move_to_end(key)
        self._shrink()
        return found

    def known(self, key: str, shares: bool) -> bool:
        """Whether the picture of this key need not be encoded, to have its features and perhaps its `shares`."""
        return key in self._kept and (key in self._shares or not shares)

    def keep(self, key: str, features: torch.Tensor) -> None:
        """Let `features` be those of the pictures named `key`."""
        self._kept[key] = features
        self._shrink()

    def _shrink(self) -> None:
        while sum(one.nbytes for one in self._kept.values()) > self._room:
            self._shares.pop(self._kept.popitem(last=False)[0], None)

    def clear(self) -> None:
        """Free them all."""
        self._kept.clear()
        self._shares.clear()
