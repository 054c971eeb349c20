"""Code that torch compiles: when the model's must not run compiled, and what ours needs of the compiler.

Code that torch has compiled passes over hooks that came later; what needs hooks asks for the code as written.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

# Each method, and each way of calling it, is compiled for itself.
KINDS = 256

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


@contextmanager
def compiling() -> Iterator[None]:
    """Within the context our own code may be compiled for each of many methods, and nobody else hears of it."""
    import torch._dynamo  # takes a second

    # Methods' numbers are constants: as inputs, each would become a tensor in every call.
    # What the compiler fails at runs as it is written, which torch says in its log.
    wanted = {
        "recompile_limit": KINDS, "accumulated_recompile_limit": 4 * KINDS, "specialize_float": True,
        "suppress_errors": True,
    }  # fmt: skip
    known = {name: one for name, one in wanted.items() if hasattr(torch._dynamo.config, name)}  # from torch 2.7 on
    with torch._dynamo.config.patch(known), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\._inductor")  # advice to who writes the code
        yield
