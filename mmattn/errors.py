"""The one exception type that users meet: what went wrong, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmattnError(Exception):
    """A problem with the user's input or set-up, told in one line together with its remedy.

    The command line prints it without a traceback and exits with status 2; library users catch this one type.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message.rstrip(".")
        self.remedy = remedy
        super().__init__(f"{self.message}. {remedy}" if remedy else self.message)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)  # torch's CPU allocator


def has_surrogate(text: str) -> bool:
    """Whether `text` holds half of a character pair, which no file, terminal or tokenizer takes."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def unknown(kind: str, name: str, known: Iterable[str]) -> MmattnError:
    """The error for a name that is not in a list: near matches first, then the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return MmattnError(f"Unknown {kind} {name!r}", f"{hint}Known: {', '.join(names)}.")
