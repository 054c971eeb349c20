"""Telling of tokens as they are chosen, so that an answer can be shown while it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import torch

# Number of the prompt, id of its next token.
OnToken = Callable[[int, int], None]


class Listener:
    """Hears the tokens of one batch, step by step, and tells those that belong to answers.

    Args:
        tell: called for each token of each answer; what it raises ends the generation. None: nobody listens.
        numbers: for each sample of the batch, the number of its prompt.
        rooms: tokens that each may generate.
        stop_ids: end an answer, and are not told.
        begun: called when the first tokens are on their way; does not wait for the device.
    """

    def __init__(
        self,
        tell: OnToken | None,
        numbers: Sequence[int],
        rooms: Sequence[int],
        stop_ids: Set[int],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.tell, self._numbers, self._stop_ids, self._begun = tell, numbers, stop_ids, begun
        self._rooms = list(rooms)

    def hear(self, step: int, tokens: torch.Tensor) -> None:
        """Tell column `step` of `tokens` (B or more, steps); waits for the device if anybody listens."""
        if step == 0:
            self._begun()
        if self.tell is None:
            return
        column = tokens[: len(self._numbers), step].tolist()
        for row, token in enumerate(column):
            if token in self._stop_ids:
                self._rooms[row] = 0
            if step < self._rooms[row]:
                self.tell(self._numbers[row], token)
