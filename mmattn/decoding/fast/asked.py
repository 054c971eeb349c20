"""What a session asks of a prefill, apart from the session: that holds the model, which a lane must not keep alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from mmattn.attention import Columns, Edit, RowCapture, Session


@dataclass
class Asked:
    """Attributes are those of `Session`; `of` shares them, so that what is kept and read is the session's at once."""

    edits: tuple[Edit, ...]
    branches: tuple[str, ...]
    depth: int
    columns: Columns | None
    capture: RowCapture | None
    memory: dict[tuple[int, int], dict[str, torch.Tensor]]

    @classmethod
    def of(cls, session: Session) -> Self:
        return cls(
            session.edits, session.branches, session.depth, session.columns, session.capture, session.memory
        )  # fmt: skip

    def forget(self) -> None:
        """What was kept and read: what an edit finds in its memory it does not make."""
        self.memory.clear()
        if self.capture is not None:
            self.capture.weights, self.capture.together = {}, None
