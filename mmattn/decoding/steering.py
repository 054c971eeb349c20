"""What methods share that steer attention towards marked tokens of the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmattn.attention import Edit, Site
from mmattn.errors import MmattnError

PLACES = ("instruction", "image")


def check_place(method: str, on: str) -> None:
    """Raises MmattnError unless `on` names tokens that can be marked."""
    if on not in PLACES:
        raise MmattnError(f"{method} cannot steer to {on!r}", f"Choose {' or '.join(map(repr, PLACES))}.")


@dataclass(frozen=True)
class Steer(Edit):
    """An edit towards the tokens of one place."""

    on: str

    def marked(self, site: Site) -> torch.Tensor:
        """(B, 1, 1, S) bool.

        Raises:
            MmattnError: nobody told where the user's words are.
        """
        if self.on == "image":
            return site.image
        if site.instruction is None:
            raise MmattnError(
                "Token ids do not tell where the instruction is",
                'Use mmattn.wrap(model, processor).generate(..., method=...), or on="image".',
            )
        return site.instruction


def share_of(weights: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """Attention on the marked keys, (B, H, R, 1)."""
    return (weights * marked).sum(-1, keepdim=True)
