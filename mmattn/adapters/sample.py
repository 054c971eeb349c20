"""What a user asks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from mmattn.adapters.marks import Mark
from mmattn.errors import MmattnError
from mmattn.text import is_text


@dataclass(frozen=True)
class Sample:
    """One request: upright RGB pictures, the user's words, and perhaps an answer to read with teacher forcing.

    Attributes:
        answer: text, or the exact token ids of an earlier generation.
        marks: what is to be emphasised, where a method does that.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    answer: str | tuple[int, ...] | None = None
    marks: tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        for what, words in (("A prompt", self.prompt), ("An answer", self.answer)):
            if what == "A prompt" and not isinstance(words, str):
                raise MmattnError(f"A prompt must be text, not {type(words).__name__}", "Pass a str for each prompt.")
            if isinstance(words, str) and not is_text(words):
                raise MmattnError(f"{what} holds half a character (a lone surrogate)", "Decode the text as UTF-8.")

    def still_marked(self) -> Sample:
        """Without the marks of what is not in it any more."""
        kept = tuple(one for one in self.marks if one.stands_in(self.prompt, len(self.images)))
        return self if kept == self.marks else replace(self, marks=kept)

    @cached_property
    def image_keys(self) -> tuple[str, ...]:
        """A content hash of each picture: equal pictures are encoded once, and seeds do not depend on order."""
        return tuple(
            hashlib.sha256(repr((picture.size, picture.mode)).encode() + picture.tobytes()).hexdigest()
            for picture in self.images
        )
