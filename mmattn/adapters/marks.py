"""What a user marks in a prompt: some of its words, a whole picture, or a part of one; and the tokens that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmattn.adapters.layout import Layout
from mmattn.adapters.text import covering, find_words
from mmattn.checks import number, whole
from mmattn.errors import MmattnError

Box = tuple[float, float, float, float]

_FORM = "Write words of the prompt, a box (x0, y0, x1, y1) in pixels, or mmattn.Mark(image=0)."


@dataclass(frozen=True)
class Mark:
    """Words of the prompt, or a picture, or a box in one.

    Attributes:
        words: every place in the user's words where these stand, as whole words if there are any, capitals aside.
        box: (x0, y0, x1, y1) in pixels of the original picture: the cells whose centres it holds, or, if it holds
            none, the cell at its own centre.
        image: number of the picture, counted from 0; without a box all of it.
    """

    words: str | None = None
    box: Box | None = None
    image: int | None = None

    def __post_init__(self) -> None:
        if (self.words is None) == (self.box is None and self.image is None):
            raise MmattnError("A mark is either words or a picture", _FORM)
        if self.words is not None and (not isinstance(self.words, str) or not self.words.strip()):
            raise MmattnError("The words to mark are empty", _FORM)
        if self.box is not None:
            object.__setattr__(self, "box", _box(self.box))
        if self.words is None:
            object.__setattr__(self, "image", whole("The number of a marked picture", self.image or 0, 0))

    @classmethod
    def of(cls, given: Any) -> Mark:
        """A mark from itself, words, or the four numbers of a box in the first picture."""
        if isinstance(given, Mark):
            return given
        return cls(words=given) if isinstance(given, str) else cls(box=_box(given))

    def stands_in(self, prompt: str, images: int) -> bool:
        """Whether a prompt with so many pictures has what is marked."""
        if self.words is not None:
            return bool(find_words(self.words, prompt, (0, len(prompt))))
        return (self.image or 0) < images

    def tokens(self, layout: Layout, text: str, offsets: Sequence[tuple[int, int]], said: tuple[int, int]) -> list[int]:
        """Places in the unpadded sequence of the tokens that hold the mark.

        Raises:
            MmattnError: they do not stand there.
        """
        if self.words is not None:
            spans = find_words(self.words, text, said)
            found = [token for span in spans for token in covering(offsets[: layout.prompt_length], span)]
            if not found:
                raise MmattnError(f"The words {self.words!r} do not stand in the prompt", "Mark words of it.")
            return found
        if not layout.images:
            raise MmattnError("There is no picture to mark", "Pass an image, or mark words.")
        if (self.image or 0) >= len(layout.images):
            raise MmattnError(f"There is no picture {self.image}", f"The prompt has {len(layout.images)}, from 0.")
        shown = layout.images[self.image or 0]
        if self.box is None:
            return list(shown.tokens)
        if shown.mixed:
            raise MmattnError(
                "An image token of this family is a mixture of places, so that a box marks none",
                "Mark the whole picture with mmattn.Mark(image=0), or words.",
            )
        cells = [token for view in shown.views for token in view.tokens_in(self.box)]
        if not cells:
            raise MmattnError(
                f"The box {self.box} lies outside of what the model sees of the picture ({shown.size[0]} x "
                f"{shown.size[1]} pixels)",
                "Mark another part; some processors cut the edges off.",
            )
        return cells


def _box(given: Any) -> Box:
    """Four numbers of a box that is not empty."""
    try:
        x0, y0, x1, y1 = given
    except (TypeError, ValueError):
        raise MmattnError(f"{given!r} cannot be marked", _FORM) from None
    box = tuple(number("A side of a box", one, -1e9, 1e9) for one in (x0, y0, x1, y1))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise MmattnError(f"The box {given!r} is empty", "Its sides are x0 < x1 and y0 < y1.")
    return (box[0], box[1], box[2], box[3])
