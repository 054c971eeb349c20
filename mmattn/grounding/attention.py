"""Captured attention of one sample: rows on image tokens, and heat maps in the pixels of the original picture."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmattn.adapters import Adapter, Layout, Prepared, Sample, View
from mmattn.adapters.text import covering, find_words
from mmattn.attention import Edit, RowCapture
from mmattn.errors import MmattnError

RowChoice = Literal["last", "prompt", "answer"] | str
Selection = int | Sequence[int] | None


@dataclass(frozen=True)
class Attention:
    """Post-softmax attention of chosen tokens on the image tokens.

    Attributes:
        held: the `weights`, or what puts them together when they are first asked for.
        layout: where each image token sits and which pixels it covers.
        positions: index of each row's token in the unpadded sequence. A row is the attention that this token pays
            while it is processed; the prompt's last token is the one that produces the first word of the answer.
        tokens: each row's token as text.
        shares: for each picture, what its image tokens are made of, (image tokens, cells) float32, in families whose
            image tokens are mixtures of cells (InstructBLIP); else None.
        layers: the decoder layer of each entry of the first axis, counted from 0.
        depth: how many layers the decoder has.
        produced: for rows read while generating: the token whose scores each row decided, as text.
    """

    held: torch.Tensor | Callable[[], torch.Tensor]
    layout: Layout
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    depth: int
    shares: tuple[torch.Tensor | None, ...]
    produced: tuple[str, ...] = ()

    @property
    def weights(self) -> torch.Tensor:
        """(layers, heads, rows, image_tokens) float32; a row sums to its total share on the pictures (<= 1)."""
        held = self.held
        if not isinstance(held, torch.Tensor):
            held = held()
            object.__setattr__(self, "held", held)  # what it was made of is freed
        return held

    def grids(
        self, image: int = 0, layers: Selection = None, heads: Selection = None, rows: Selection = None
    ) -> list[NDArray[np.float32]]:
        """Mean weight of each cell, one (rows, columns) grid per view of picture number `image`.

        `layers`, `heads` and `rows` choose what is averaged: a number, several, or None for all that were read.
        Layers go by their number in the decoder, whichever of them were read.
        """
        if not self.layout.images:
            raise MmattnError("There is no picture to map the attention onto", "Pass an image to attend().")
        if not 0 <= image < len(self.layout.images):
            raise MmattnError(f"There is no picture {image}", f"The prompt has {len(self.layout.images)}.")
        _, head_count, row_count, _ = self.weights.shape
        picked = (self._places(layers), _indices(heads, head_count, "head"), _indices(rows, row_count, "row"))
        weights = self.weights
        for axis, choice in enumerate(picked):
            weights = weights.index_select(axis, torch.tensor(choice, device=weights.device))
        shown = self.layout.images[image]
        first = sum(len(one.tokens) for one in self.layout.images[:image])
        mean = weights.mean(dim=(0, 1, 2))[first : first + len(shown.tokens)]
        share = self.shares[image]
        cells = (mean if share is None else mean @ share.to(mean.device)).cpu().numpy()
        start = 0 if shown.mixed else shown.tokens.start
        return [
            cells[[token - start for token in view.tokens]].reshape(view.rows, view.columns) for view in shown.views
        ]

    def _places(self, layers: Selection) -> list[int]:
        """Entries of the first axis that hold these decoder layers."""
        if layers is None:
            return list(range(len(self.layers)))
        numbers = _indices(layers, self.depth, "layer")
        for number in numbers:
            if number not in self.layers:
                kept = ", ".join(map(str, self.layers))
                raise MmattnError(f"Layer {number} was not read", f"Read: {kept}. Name it in attend(layers=...).")
        return [self.layers.index(number) for number in numbers]

    def heatmap(
        self,
        image: int = 0,
        layers: Selection = None,
        heads: Selection = None,
        rows: Selection = None,
        smooth: bool = False,
    ) -> NDArray[np.float32]:
        """The mean weights spread over the original picture: (H, W) float32.

        A pixel holds the weight of the cell that covers it (bilinear between cell centres if `smooth`), summed over
        views; 0 where the processor cut the picture away.
        """
        grids = self.grids(image, layers, heads, rows)
        shown = self.layout.images[image]
        maps = [view.to_image(grid, shown.size, smooth) for view, grid in zip(shown.views, grids, strict=True)]
        total: NDArray[np.float32] = np.sum(maps, axis=0, dtype=np.float32)
        return total

    def peak(
        self, image: int = 0, layers: Selection = None, heads: Selection = None, rows: Selection = None
    ) -> tuple[float, float]:
        """Centre (x, y), in original pixels, of the strongest cell of picture number `image`."""
        grids = self.grids(image, layers, heads, rows)
        views = self.layout.images[image].views
        best = max(range(len(grids)), key=lambda index: float(grids[index].max()))
        row, column = divmod(int(grids[best].argmax()), views[best].columns)
        return _inside(views[best], column, row, self.layout.images[image].size)


def attend(
    adapter: Adapter, sample: Sample, rows: RowChoice | None, layers: Selection, edits: Sequence[Edit] = ()
) -> Attention:
    """One forward call with row capture; see `VLM.attend`."""
    prepared = adapter.prepare([sample])[0]
    layout = prepared.layout
    positions = choose_rows(rows, prepared)
    count = adapter.depth
    wanted = tuple(dict.fromkeys(_indices(layers, count, "layer")))
    columns = torch.tensor([layout.image_tokens], dtype=torch.long)
    capture = RowCapture(torch.tensor([adapter.rows(positions, prepared)]), columns, wanted)
    with torch.inference_mode(), adapter.session(capture, edits) as session:
        shares: dict[str, torch.Tensor] = {}
        features = [adapter.encode(prepared.pixels, shares)] if prepared.pixels else [[]]
        batch = adapter.embed([prepared], features)
        session.columns = batch.columns
        adapter.decode(batch)
    made_of = tuple(shares.get(one.key) for one in prepared.pixels)
    tokens = tuple(adapter.word(int(prepared.ids[position])) for position in positions)
    return Attention(capture.stacked()[:, 0].cpu(), layout, tuple(positions), tokens, wanted, count, made_of)


def choose_rows(rows: RowChoice | None, prepared: Prepared) -> list[int]:
    """Sequence positions of the wanted rows; see `VLM.attend` for the choices."""
    layout = prepared.layout
    if rows is None:
        rows = "answer" if layout.answer else "last"
    if rows == "last":
        return [layout.prompt_length - 1]
    if rows == "answer":
        if not layout.answer:
            raise MmattnError("There is no answer to read", "Pass answer=..., or choose other rows.")
        return list(layout.answer)
    images = set(layout.image_tokens)
    if rows == "prompt":
        return [position for position in range(layout.prompt_length) if position not in images]
    # The template's own words do not count: "is" stands in "ASSISTANT", too.
    spans = find_words(rows, prepared.text, prepared.said) if isinstance(rows, str) else []
    found = covering(prepared.offsets[: layout.prompt_length], spans[-1]) if spans else range(0)
    if not found:
        raise MmattnError(
            f"The words {rows!r} do not stand in the prompt",
            'Choose "last", "prompt", "answer", or words of the prompt.',
        )
    return list(found)


def _indices(choice: Selection, size: int, what: str) -> list[int]:
    """Numbers from 0 to size - 1, from one number, several, or None for all; negative ones count from the end."""
    if choice is None:
        return list(range(size))
    given: Iterable[Any] = choice if isinstance(choice, Iterable) and not isinstance(choice, (str, bytes)) else [choice]
    picked = []
    for one in given:
        try:
            index = operator.index(one)
        except TypeError:
            index = size
        if isinstance(one, bool) or not -size <= index < size:
            raise MmattnError(f"There is no {what} {one}", f"There are {size}, counted from 0.")
        picked.append(index % size)
    if not picked:
        raise MmattnError(f"No {what} is chosen", f"There are {size}, counted from 0.")
    return picked


def _inside(view: View, column: int, row: int, size: tuple[int, int]) -> tuple[float, float]:
    """A cell's centre; a cell that hangs over the picture's edge (padding) is cut to the part inside."""
    left, top = view.to_pixels.point(column, row)
    right, bottom = view.to_pixels.point(column + 1, row + 1)
    x = (max(left, 0.0) + min(right, float(size[0]))) / 2
    y = (max(top, 0.0) + min(bottom, float(size[1]))) / 2
    return min(max(x, 0.0), float(size[0])), min(max(y, 0.0), float(size[1]))


def describe_rows(attention: Attention) -> list[dict[str, Any]]:
    """Per row: position, token, and its mean share on the pictures; ready for JSON."""
    shares = attention.weights.sum(-1).mean(dim=(0, 1)).tolist()
    rows = zip(attention.positions, attention.tokens, shares, strict=True)
    return [{"position": position, "token": token, "image_share": share} for position, token, share in rows]
