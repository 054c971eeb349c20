"""What counts as text."""

from __future__ import annotations

from typing import Any


def is_text(value: Any) -> bool:
    """Whether `value` is a text that UTF-8 can hold: half a surrogate pair, as in damaged input, is none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
