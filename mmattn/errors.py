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


def unknown(kind: str, name: str, known: Iterable[str]) -> MmattnError:
    """The error for a name that is not in a list: near matches first, then the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return MmattnError(f"Unknown {kind} {name!r}", f"{hint}Known: {', '.join(names)}.")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. PyTorch has a type of its own for that on a GPU only, and tells it in words on a CPU."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
