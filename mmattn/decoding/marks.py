"""Image tokens that an edit chooses by the vision tower, put into its memory before the prefill."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmattn.adapters import Adapter, Embedded, Pixels
from mmattn.attention import Session


def mark(adapter: Adapter, pictures: Sequence[tuple[Pixels, ...]], batch: Embedded, session: Session) -> None:
    """Ask the vision tower for the edits of `session` that want it.

    Args:
        pictures: those of each sample as the plain branch shows them.
        batch: its rows are those of all branches, sample by sample; the marks of a sample are in its plain row alone.
    """
    distinct = {one.key: one for row in pictures for one in row}
    image, every = batch.columns.image, len(session.branches)
    for number, edit in enumerate(session.edits):
        if not edit.tower:
            continue
        looks = adapter.class_attention(list(distinct.values()), edit.tower) if distinct else []
        found = {key: edit.marks(one) for key, one in zip(distinct, looks, strict=True)}
        memory = edit.blank(len(image), image.shape[1], 0, image.device)
        session.memory[edit.place(number, 0)] = memory
        for row, shown in enumerate(pictures):
            for name, marks in memory.items() if shown else ():
                mine = torch.cat([found[one.key][name] for one in shown])
                marks[row * every, image[row * every]] = mine.to(marks.device)
