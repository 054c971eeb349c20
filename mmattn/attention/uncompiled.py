"""Code that torch has compiled passes over hooks that came later; what needs hooks asks for the code as written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_LOCK = threading.Lock()
_HELD = ExitStack()
_users = 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within the context, compiled functions run as they are written: slower, with the same results.

    torch has one such switch for all threads; it goes back when the last user has left.
    """
    global _users
    with _LOCK:
        if not _users:
            _HELD.enter_context(torch.compiler.set_stance("force_eager"))
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if not _users:
                _HELD.close()
