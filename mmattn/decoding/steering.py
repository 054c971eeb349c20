"""What methods share that steer attention towards marked tokens of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from mmattn.attention import Edit, Site
from mmattn.decoding.method import Method
from mmattn.errors import MmattnError

PLACES = ("instruction", "image", "mark")


class Steering(Method):
    """Base of methods that steer attention.

    Attributes:
        on: where to: the user's words ("instruction"), all pictures ("image"), or what each sample brings as
            `generate(emphasise=...)` ("mark"); a sample that brings nothing then stays as it is.
    """

    on: str

    def towards(self, on: str) -> Self:
        """The same towards another place."""
        settings: Any = {"on": on}
        return replace(self, **settings)


def check_place(method: str, on: str, places: Sequence[str] = PLACES) -> None:
    """Raises MmattnError unless `on` names tokens that can be marked."""
    if on not in places:
        raise MmattnError(f"{method} cannot steer to {on!r}", f"Choose {' or '.join(map(repr, places))}.")


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
        marked = site.instruction if self.on == "instruction" else site.marked
        if marked is None:
            raise MmattnError(
                f"Token ids do not tell where the {self.on} is",
                'Use mmattn.wrap(model, processor).generate(..., method=...), or on="image".',
            )
        return marked


def share_of(weights: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """Attention on the marked keys, (B, H, R, 1)."""
    return (weights * marked).sum(-1, keepdim=True)
