"""A method's edits of attention inside the captured step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mmattn.attention import Columns, Edit, Site, rewritten

# What edits keep from the prefill on, by edit and layer.
Memory = Mapping[tuple[int, int], Mapping[str, torch.Tensor]]


class Rewriting:
    """Does a layer's edits over fixed buffers, for `rows` rows of `slots` keys whose branches are `names`, in turns.

    Attributes:
        layers: those in which rows of attention are edited. remixed: those in which the heads' output is.
        rewrite_rows: `_plain_rows`, compiled.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        names: Sequence[str],
        depth: int,
        heads: int,
        rows: int,
        slots: int,
        device: torch.device,
    ) -> None:
        self._edits, self._depth, self._names = tuple(edits), depth, tuple(names)
        wanted = {layer: [one for one in edits if one.wants(layer, depth)] for layer in range(depth)}
        self.layers = frozenset(layer for layer, found in wanted.items() if any(one.rewrites_rows for one in found))
        self.remixed = frozenset(layer for layer, found in wanted.items() if any(one.rewrites_output for one in found))
        # Which keys hold image tokens, the user's words, and what is marked.
        self._places = torch.zeros(3, rows, slots, dtype=torch.bool, device=device)
        # Which rows an edit may change: those with a picture, of the branches that it names.
        self._eligible = torch.zeros(len(edits), rows, 1, 1, 1, dtype=torch.bool, device=device)
        self._memory = {
            edit.place(number, layer): edit.blank(rows, slots, heads, device)
            for number, edit in enumerate(edits)
            for layer in range(depth)
            if edit.wants(layer, depth)
        }
        touched = [edit.touches(names, rows) for edit in edits]
        self._touched = [None if one is None else one.to(device) for one in touched]
        cuda = device.type == "cuda"
        self._rewrite = torch.compile(self._plain) if cuda else self._plain
        self._remix = torch.compile(self._plain_output) if cuda else self._plain_output
        # A function of its own, so that the step's code is compiled for its sizes alone.
        self.rewrite_rows = torch.compile(self._plain_rows, dynamic=True) if cuda else self._plain_rows

    def knows(self, memory: Memory) -> bool:
        """Whether there are buffers for all that the edits kept."""
        return all(
            name in self._memory.get(place, {}) and self._fits(self._memory[place][name], value)
            for place, kept in memory.items()
            for name, value in kept.items()
        )

    @staticmethod
    def _fits(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
        sizes = zip(mine.shape[:2], theirs.shape[:2], strict=True)
        return mine.shape[2:] == theirs.shape[2:] and all(one >= other for one, other in sizes)

    def start(self, columns: Columns, memory: Memory) -> None:
        """Before a batch (rows or fewer) whose prompts hold image tokens, the user's words and marks at `columns`."""
        fill_places(self._places, columns)
        pictured = self._places[0].any(-1)
        for mine, touched in zip(self._eligible, self._touched, strict=True):
            mine[:, 0, 0, 0] = pictured if touched is None else pictured & touched
        for place, kept in self._memory.items():
            for name, mine in kept.items():
                _fill(mine, memory.get(place, {}).get(name))

    def rewrite(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """The weights that `layer`'s edits make of its scores (M, H, 1, C)."""
        return self._rewrite(layer, scores, self._places, self._kept(layer))

    def remix(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """What `layer`'s edits make of its heads' output (M, 1, H, D)."""
        return self._remix(layer, output, self._places, self._kept(layer))

    def _kept(self, layer: int) -> list[dict[str, torch.Tensor]]:
        """Each edit's memory of a layer."""
        return [self._memory.get(edit.place(number, layer), {}) for number, edit in enumerate(self._edits)]

    def _sites(
        self,
        layer: int,
        places: torch.Tensor,
        kept: list[dict[str, torch.Tensor]],
        names: tuple[str, ...],
        states: torch.Tensor | None = None,
    ) -> list[tuple[int, Edit, Site]]:
        """The edits at work in a layer, with their numbers, and where each is."""
        known = places.shape[-1]
        image, said, marked = places[:, :, None, None, :]
        return [
            (number, edit, Site(layer, self._depth, image, said, states, memory, known, names, marked=marked))
            for number, (edit, memory) in enumerate(zip(self._edits, kept, strict=True))
            if edit.wants(layer, self._depth)
        ]

    def _plain(
        self,
        layer: int,
        scores: torch.Tensor,
        places: torch.Tensor,
        kept: list[dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        sites = self._sites(layer, places, kept, self._names)
        return rewritten(scores, [(edit, site, self._eligible[number]) for number, edit, site in sites])

    def _plain_rows(
        self,
        layer: int,
        scores: torch.Tensor,
        places: torch.Tensor,
        may: Sequence[torch.Tensor],
        kept: list[dict[str, torch.Tensor]],
        states: torch.Tensor,
        names: tuple[str, ...],
    ) -> torch.Tensor:
        """The weights (B, H, R, S) that `layer`'s edits make of prompts' rows of scores, of that shape.

        Args:
            places: (3, B, S) bool, keys that hold image tokens, the user's words, and what is marked.
            may: for each edit, which rows it may change, (B, 1, R, 1) bool.
            kept: for each edit, what it keeps of the layer.
            states: (B, T, D) hidden states that enter the layer.
            names: the branches, which may be more than are decoded.
        """
        sites = self._sites(layer, places, kept, names, states)
        return rewritten(scores, [(edit, site, may[number]) for number, edit, site in sites])

    def _plain_output(
        self,
        layer: int,
        output: torch.Tensor,
        places: torch.Tensor,
        kept: list[dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        for number, edit, site in self._sites(layer, places, kept, self._names):
            changed, touched = edit.output(output, site), self._touched[number]
            output = changed if touched is None else torch.where(touched[:, None, None, None], changed, output)
        return output


def fill_places(places: torch.Tensor, columns: Columns) -> None:
    """Which keys hold image tokens, the user's words, and what is marked, into `places` (3, B, S) bool."""
    for mine, theirs in zip(places, (columns.image, columns.instruction, columns.marked), strict=True):
        _fill(mine, theirs)


def _fill(mine: torch.Tensor, theirs: torch.Tensor | None) -> None:
    """Copy into the first rows and keys; the rest is 0."""
    mine.zero_()
    if theirs is not None:
        mine[: len(theirs), : theirs.shape[1]] = theirs
