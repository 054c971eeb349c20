"""What a user asks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from PIL import Image


@dataclass(frozen=True)
class Sample:
    """One request: upright RGB pictures, the user's words, and perhaps an answer to read with teacher forcing.

    Attributes:
        answer: text, or the exact token ids of an earlier generation.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    answer: str | tuple[int, ...] | None = None

    @cached_property
    def image_keys(self) -> tuple[str, ...]:
        """A content hash of each picture: equal pictures are encoded once, and seeds do not depend on order."""
        return tuple(
            hashlib.sha256(repr((picture.size, picture.mode)).encode() + picture.tobytes()).hexdigest()
            for picture in self.images
        )
