"""What an attention edit is, and which rows and columns it works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from mmattn.attention.rows import Call


@dataclass(frozen=True)
class View:
    """A call of T tokens, for edits that look at more than the rows they are given.

    Attributes:
        call: its arguments; `Call.scores` gives any rows before all edits, -inf on hidden keys.
        columns: which keys hold image tokens, and which rows are text after a picture.
    """

    call: Call
    columns: Columns

    def last(self) -> torch.Tensor:
        """Scores (B, H, 1, S) of the last row."""
        batch, _, length, _ = self.call.query.shape
        return self.call.scores(torch.full((batch, 1), length - 1))

    def portions(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Scores (B, H, some, S) of `rows` (B, R), so many at a time that memory stays bounded."""
        for start in range(0, rows.shape[1], self.call.portion):
            yield self.call.scores(rows[:, start : start + self.call.portion])


@dataclass(frozen=True)
class Site:
    """Where an edit is at work: one layer, and the keys that hold image tokens.

    Attributes:
        layer, depth: decoder layer, counted from 0, and how many there are.
        image: (B, 1, 1, S) bool, True on keys that hold image tokens.
        instruction: (B, 1, 1, S) bool, True on keys that hold the user's words; None where nobody told.
        states: (B, T, D) hidden states of the call's keys as they enter the layer (an encoder's output, where the
            layer looks at an encoder); only for edits that ask for them.
        memory: what this edit keeps of this layer from the prefill to the end, as `Edit.blank` says.
        known: keys that hold tokens, at the prefill; static caches have more.
        view: the call's other rows; only for edits that ask for them, and None in a call of one token.
        branches: names of the K branches; row b * K + k of the batch is branch k of sample b.
        marked: (B, 1, 1, S) bool, True on keys that hold what the user marked; None where nobody told.
    """

    layer: int
    depth: int
    image: torch.Tensor
    instruction: torch.Tensor | None = None
    states: torch.Tensor | None = None
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    known: int = 0
    branches: tuple[str, ...] = ("plain",)
    view: View | None = None
    marked: torch.Tensor | None = None

    def recall(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` gave at the prefill."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    def tell(self, name: str, value: torch.Tensor) -> None:
        """Keep `value` (B, keys) for the layers above, in this call; in place, so that a captured step goes on."""
        kept = self.memory.get(name)
        if kept is not None and kept.shape == value.shape:
            kept.copy_(value)
        else:
            self.memory[name] = value

    def per_key(self, flags: torch.Tensor) -> torch.Tensor:
        """Flags (B, keys of the prefill) bool as (B, 1, 1, S); keys that came later are False."""
        return _padded(flags, self.image.shape[-1])


class Edit:
    """A change of attention at the text rows that come after a picture; every row of a decode step is one.

    A subclass overrides some of `scores`, `weights` and `output`. All edits' `scores` run first, then the softmax, then
    all edits' `weights`, then, on the finished output of all rows, all edits' `output`, each in the order in which the
    edits were given. Edits must not depend on other samples of the batch. In a decode step they must be plain tensor
    work: no word to the host, no shape that depends on data, so that a captured step can replay them. There, and for
    prompts in front of such steps, their code is compiled: what it does besides tensor work it may do once only. Short
    prompts are captured, too, unless an edit asks the device: then one warning says that they are not.

    Attributes:
        branches: names of the branches to edit ("plain" is the plain one); None for all.
        last_row: edit only the last row of a call: that which decides the next token.
        states: ask for `Site.states`.
        views: ask for `Site.view`.
        every_row: edit every row of a call, those of image tokens and of words before them too, in samples with a
            picture.
        common: keep one memory for all layers in place of one for each, so that a layer may tell those above it.
        by_layer: what it does hangs on the number of the layer, so that compiled code would be made for each: the
            prompt's rows are edited by plain operations.
        tower: layers of the vision tower whose class token's attention `marks` wants; negative ones count from the end.
    """

    branches: ClassVar[tuple[str, ...] | None] = None
    last_row: ClassVar[bool] = False
    states: ClassVar[bool] = False
    views: ClassVar[bool] = False
    every_row: ClassVar[bool] = False
    common: ClassVar[bool] = False
    by_layer: ClassVar[bool] = False
    tower: ClassVar[tuple[int, ...]] = ()

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        """Whether decoder layer `layer` of `depth` is edited."""
        return True

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:  # noqa: ARG002
        """Change pre-softmax scores (B, H, R, S) float32; hidden keys are -inf."""
        return scores

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:  # noqa: ARG002
        """Change post-softmax weights (B, H, R, S) float32; each row should go on summing to 1."""
        return weights

    def output(self, output: torch.Tensor, site: Site) -> torch.Tensor:  # noqa: ARG002
        """Change what the heads give (B, T, H, D), before it is projected: all rows, also those before a picture."""
        return output

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Memory of the shapes that `Site.recall` fills: (rows, keys of the prefill) per key, or (rows, 1, ...)."""
        return {}

    def marks(self, looks: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Image tokens (N,) bool of one picture, by the names under which they will be in memory, which is `common`.

        `looks` (layers, N) is the class token's attention, summed over heads; no number on tokens that show no place.
        """
        return {}

    def place(self, number: int, layer: int) -> tuple[int, int]:
        """Where the memory of edit `number` in `layer` is kept."""
        return number, -1 if self.common else layer

    @property
    def whole(self) -> bool:
        """Whether the prompt must come in one call."""
        return self.states or self.views or self.every_row

    @property
    def rewrites_output(self) -> bool:
        """Whether the heads' finished output is changed."""
        return type(self).output is not Edit.output

    def touches(self, names: Sequence[str], rows: int) -> torch.Tensor | None:
        """Rows of the batch (rows,) bool whose branch may be edited, row b * K + k being `names[k]`; None for all."""
        if self.branches is None:
            return None
        return torch.tensor([name in self.branches for name in names]).repeat(rows // len(names))

    @property
    def rewrites_rows(self) -> bool:
        """Whether rows of attention are edited, and not the heads' output alone."""
        kind = type(self)
        return kind.scores is not Edit.scores or kind.weights is not Edit.weights


@dataclass(frozen=True)
class Columns:
    """Which keys hold image tokens, and which queries of the current call an edit may change.

    Attributes:
        image: (B, S) bool.
        rows: (B, R) indices of text rows after a picture in the current call; samples with fewer repeat one of theirs.
        valid: (B, R) bool, False where a sample has no such row.
        cross: the keys are an encoder's: they do not grow, and every query comes after them.
        instruction: (B, S) bool, keys that hold the user's words; None where nobody told.
        marked: (B, S) bool, keys that hold what the user marked; None where nobody told.
    """

    image: torch.Tensor
    rows: torch.Tensor
    valid: torch.Tensor
    cross: bool = False
    instruction: torch.Tensor | None = None
    marked: torch.Tensor | None = None

    @classmethod
    def of_sequence(cls, image: torch.Tensor, queries: int | None = None) -> Columns:
        """For a call on the last `queries` tokens (default: all) of sequences with image tokens at `image` (B, S)."""
        after = ~image & (image.cumsum(-1) > 0)
        after = after[:, image.shape[1] - (queries or image.shape[1]) :]
        count = after.sum(-1)
        width = max(int(count.max()), 1)
        # A stable sort brings the rows to the front; those beyond a sample's count repeat its first.
        rows = after.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
        rows = torch.where(torch.arange(width, device=rows.device) < count[:, None], rows, rows[:, :1])
        return cls(image, rows, (count > 0)[:, None].expand_as(rows))

    @classmethod
    def of_encoder(
        cls,
        image: torch.Tensor,
        queries: int = 1,
        instruction: torch.Tensor | None = None,
        marked: torch.Tensor | None = None,
    ) -> Columns:
        """For cross-attention to image tokens at `image` (B, S)."""
        return cls(image, *_all_rows(image, queries), cross=True, instruction=instruction, marked=marked)

    def next(self, queries: int = 1) -> Columns:
        """For the call on the `queries` text tokens that follow."""
        more = 0 if self.cross else queries
        image, said, marked = self.keys(lambda one: torch.nn.functional.pad(one, (0, more)))
        return Columns(image, *_all_rows(image, queries), self.cross, said, marked)

    def everywhere(self, queries: int) -> Columns:
        """With all `queries` rows of the current call."""
        rows, valid = _all_rows(self.image, queries)
        return replace(self, rows=rows, valid=valid)

    def to(self, device: torch.device) -> Columns:
        return self._each(lambda one: one.to(device))

    def select(self, rows: torch.Tensor) -> Columns:
        """Of these rows of the batch."""
        return self._each(lambda one: one.index_select(0, rows))

    def keys(
        self, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`image`, `instruction` and `marked` after a change of each."""
        said, marked = (None if one is None else change(one) for one in (self.instruction, self.marked))
        return change(self.image), said, marked

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Columns:
        image, said, marked = self.keys(change)
        return Columns(image, change(self.rows), change(self.valid), self.cross, said, marked)

    def places(self) -> torch.Tensor:
        """Keys of each sample's image tokens, in order, (B, N); behind fewer than N stand other keys."""
        most = int(self.image.sum(-1).max())
        return self.image.int().argsort(dim=-1, descending=True, stable=True)[:, :most]

    def eligible(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether an edit may change `rows` (B, R): (B, R) bool."""
        if rows is self.rows:  # as most calls ask, in every layer
            return self.valid
        same = (rows[:, :, None] == self.rows[:, None, :]) & self.valid[:, None, :]
        return same.any(-1)

    def spread(self, keys: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As `keys`, (B, 1, 1, keys) each; keys not known yet (an unfilled static cache) are False."""
        return self.keys(lambda one: _padded(one, keys))


def _padded(flags: torch.Tensor, keys: int) -> torch.Tensor:
    """Flags (B, S) bool as (B, 1, 1, keys), the rest False."""
    more = keys - flags.shape[1]
    return (torch.nn.functional.pad(flags, (0, more)) if more else flags)[:, None, None, :]


def _all_rows(image: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row of a call, valid in samples that have a picture."""
    rows = torch.arange(queries, device=image.device).expand(len(image), -1)
    return rows, image.any(-1, keepdim=True).expand_as(rows)
