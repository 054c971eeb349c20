"""The models that the demo offers, each loaded when it is first asked for and shared by all visitors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import mmattn
from mmattn.demo.state import ALL_MEAN, ONE_HEAD, View
from mmattn.loading import BUNDLED


class Models:
    """Models by name.

    Args:
        first: the one that is loaded at once.
        options: arguments of `mmattn.load`.
    """

    def __init__(self, first: str = BUNDLED[0], others: Sequence[str] = BUNDLED, **options: Any) -> None:
        # A path of the server's is nobody's business.
        self._sources = {Path(one).name if Path(one).is_dir() else one: one for one in (first, *others)}
        self.names = tuple(self._sources)
        self._options = options
        self._loaded: dict[str, mmattn.VLM] = {}
        self._lock = Lock()

    def get(self, name: str) -> mmattn.VLM:
        """The model, loaded if need be.

        Raises:
            MmattnError: it is not among those offered, or cannot be loaded.
        """
        if name not in self._sources:
            raise mmattn.MmattnError(f"The model {name!r} is not offered", f"Choose {', '.join(self.names)}.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = mmattn.load(self._sources[name], **self._options)
            return self._loaded[name]

    def source(self, name: str) -> str:
        """What `mmattn.load` takes."""
        return self._sources[name]


def size_of(model: mmattn.VLM) -> tuple[int, int]:
    """(layers, heads) of the decoder."""
    return model.adapter.depth, model.model.config.get_text_config().num_attention_heads


def first_view(model: mmattn.VLM) -> View:
    """The head that points best, where somebody measured it; else the mean of everything."""
    if model.localisation_head is None:
        return View(layer=size_of(model)[0] // 2, how=ALL_MEAN)
    layer, head = model.localisation_head
    return View(layer=layer, head=head, how=ONE_HEAD)
